"""Last step: copy the products to their plain names, write the manifest, and keep exactly one stamp."""

import sys
from pathlib import Path

from precfm.core.errors import PrecfmError
from precfm.pipeline.node import RESULTS
from precfm.pipeline.plan import load_plan
from precfm.pipeline.products import write_products
from precfm.pipeline.snakemake_entry import messages_to

for stamp in (RESULTS / snakemake.params.experiment / "records").glob("products-*"):
    stamp.unlink()
try:
    with messages_to(Path(snakemake.log[0])):
        write_products(load_plan(snakemake.params.experiment))
except PrecfmError as error:
    sentence = f"precfm: products: {error}"
    Path(snakemake.log[0]).with_suffix(".error").write_text(sentence + "\n", encoding="utf-8")
    sys.exit(sentence)
