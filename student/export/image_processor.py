"""preprocessor_config.json of an exported student, and the processor class of its folder."""

from pathlib import Path
from typing import Any, overload

from ...siglip import Checkpoint, NaflexRecipe
from ...siglip.files import write_json


@overload
def processor_class_to_name(image: Checkpoint, text: Checkpoint) -> str: ...
@overload
def processor_class_to_name(image: Checkpoint, text: Checkpoint | None) -> str | None: ...
def processor_class_to_name(image: Checkpoint, text: Checkpoint | None) -> str | None:
    """Return the class for AutoProcessor; None for an image tower alone.

    Siglip2Processor of transformers 5.23 always takes 256 patches of 16 pixels and 64 tokens, whatever the
    files say; SiglipProcessor follows the files.
    """
    if text is None:
        return None
    recipe = image.image
    if not isinstance(recipe, NaflexRecipe):
        return "SiglipProcessor"
    wanted = (recipe.max_num_patches, recipe.patch_size, text.max_text_tokens)
    return "Siglip2Processor" if wanted == (256, 16, 64) else "SiglipProcessor"


def write_image_processor(
    folder: Path, checkpoint: Checkpoint, processor_class: str | None
) -> None:
    """Write preprocessor_config.json for transformers 4 and 5; every setting is explicit."""
    recipe = checkpoint.image
    name = checkpoint.model_type.capitalize()
    settings: dict[str, Any] = {
        "image_processor_type": f"{name}ImageProcessor",
        # null and not false: the same to transformers, but it makes transformers.js drop alpha.
        "do_convert_rgb": True if recipe.on_white else None,
        "do_resize": True,
        "resample": recipe.resample,
        "do_rescale": True,
        "rescale_factor": checkpoint.rescale_factor,
        "do_normalize": True,
        "image_mean": list(checkpoint.image_mean),
        "image_std": list(checkpoint.image_std),
    }
    if isinstance(recipe, NaflexRecipe):
        settings |= {"patch_size": recipe.patch_size, "max_num_patches": recipe.max_num_patches}
    else:
        settings["size"] = {"height": recipe.size[0], "width": recipe.size[1]}
    if processor_class is not None:
        settings["processor_class"] = processor_class
    write_json(folder / "preprocessor_config.json", settings)
