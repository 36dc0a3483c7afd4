"""Applying the stored augmentation of a view to its pixels."""

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ..store.format.augmentation import NO_SOLARIZE, Augmentation

_HUES = 255
"""Steps of the colour circle in Pillow's HSV."""


def augment(image: Image.Image, operations: Augmentation) -> Image.Image:
    """Return an RGB view, at the resolution of the model, with its operations applied in their order.

    An operation that changes nothing is left out. All are Pillow's, as in torchvision's transforms of Pillow
    images: enhancers, a shift of the hue in HSV, conversion to L, GaussianBlur, solarize.
    """
    for enhancer, factor in (
        (ImageEnhance.Brightness, operations.brightness),
        (ImageEnhance.Contrast, operations.contrast),
        (ImageEnhance.Color, operations.saturation),
    ):
        if factor != 1:
            image = enhancer(image).enhance(factor)
    steps = round(operations.hue * _HUES) % _HUES
    if steps:
        hue, saturation, value = image.convert("HSV").split()
        hue = hue.point([(old + steps) % _HUES for old in range(256)])
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if operations.grayscale:
        image = image.convert("L").convert("RGB")
    if operations.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(operations.blur * min(image.size)))
    if operations.solarize < NO_SOLARIZE:
        image = ImageOps.solarize(image, operations.solarize)
    return image
