"""Raw data: verified, decoded, split."""


use rule artifact as split_data with:
    wildcard_constraints:
        kind="data",
