"""Write a checkpoint as a folder in Hugging Face's layout: `... +variant=chinese stage=cooldown out=FOLDER`.

With run=DIRECTORY another run than the one that the settings declare; with at_tokens=TOKENS another checkpoint than
its last. export.dtype is bf16, fp16 or fp32.
"""

import json

from tinyllama.config.app import command
from tinyllama.config.schema import Format, RunConfig
from tinyllama.units import format_bytes


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    from tinyllama.checkpoint.choice import choose
    from tinyllama.data.reporter import shown
    from tinyllama.exporting.out import require_free

    folder = require_free(config.out)
    chosen = choose(config, overrides)

    from tinyllama.exporting.folder import export  # torch and transformers: only now, so that refusals are quick

    with shown() as tell:
        exported = export(chosen, config.export, folder, tell)
    dtype = config.export.dtype.value
    if config.format is Format.json:
        document = {
            "folder": str(folder),
            "dtype": dtype,
            "bytes": exported.bytes,
            "files": list(exported.files),
            "max_logit_difference": exported.max_logit_difference,
            "digest": chosen.checkpoint.digest,
            "tokens": chosen.tokens,
        }
        print(json.dumps(document))
        return
    print(f"{chosen.name} at {chosen.tokens:,} tokens of life: {format_bytes(exported.bytes)} in {dtype}, {folder}")
    print(f"its logits, as transformers loads it, differ from the checkpoint's by {exported.max_logit_difference:.1e}")


if __name__ == "__main__":
    main()
