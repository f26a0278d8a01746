"""The headers of images: their sizes, without decoding them."""
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

LYING = (5, 6, 7, 8)  # EXIF's orientations that swap height and width


class Header(NamedTuple):
    """What a file says of its image."""
    size: tuple[int, int]  # width, height, as the image lies in its file
    orientation: int  # EXIF's, 1 for an image that lies as it is seen

    def loaded_size(self) -> tuple[int, int]:
        """Width and height of the image as OpenCV loads it, turned."""
        return self.size[::-1] if self.orientation in LYING else self.size


def read_header(path: Path) -> Header | str:
    """Or else ``lost``, ``empty``, or ``unreadable`` for what Pillow cannot read."""
    try:
        if path.stat().st_size == 0:
            return 'empty'
    except OSError:
        return 'lost'
    try:
        with Image.open(path) as image:
            return Header(image.size, image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # OpenCV may read it, or else names it
        return 'unreadable'
