"""RO-Crates held against their profiles, without the network."""

from pathlib import Path
from unittest.mock import patch


def issues(folder, profile):
    """What the validator finds, as sentences."""
    import requests
    import rocrate
    from rocrate_validator import services
    from rocrate_validator.models import Severity
    from rocrate_validator.utils.http import HttpRequester

    # The context is the one that rocrate ships, with the addresses that version 1.1 has.
    shipped = (Path(rocrate.__file__).parent / "data/ro-crate.jsonld").read_text()
    context = shipped.replace("https://bioschemas.org/terms/", "https://bioschemas.org/")

    def get(self, url, *arguments, **options):
        answer = requests.Response()
        answer.url, answer.status_code = url, 200 if url.endswith("/context") else 404
        answer._content = context.encode() if answer.status_code == 200 else b""
        answer.headers["Content-Type"] = "application/ld+json"
        return answer

    settings = services.ValidationSettings(
        rocrate_uri=str(folder), profile_identifier=profile, requirement_severity=Severity.REQUIRED
    )
    with patch.multiple(HttpRequester, create=True, get=get, head=get):
        return [issue.message for issue in services.validate(settings).get_issues()]
