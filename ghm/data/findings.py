"""What can be wrong with a data set, and how it is said.

An error stops the stage: with it, training would fail or mean nothing. A warning is counted in the manifest: the data
set can be used, and a reader of its results should know.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ghm.errors import InputError
from ghm.words import count

# Kind of finding -> its subject and verb, and the rest of the sentence.
ERRORS = {
    "duplicate_image_ids": ("image has|images have", "an id that another one has"),
    "duplicate_box_ids": ("box has|boxes have", "an id that another one has"),
    "boxes_with_id_0": ("box has|boxes have", "the id 0, which the evaluation takes for none (number boxes from 1)"),
    "duplicate_categories": ("category has|categories have", "the id or the name of another one"),
    "unknown_image_ids": ("box names|boxes name", "an image that the file does not have"),
    "unknown_category_ids": ("box names|boxes name", "a category that the file does not have"),
    "not_finite": ("box holds|boxes hold", "a number that is not finite"),
    "images_without_size": ("image has|images have", "a width or height below 1"),
    "unsafe_file_names": ("file name leaves|file names leave", "the image folder or cannot be a file's name"),
    "unsafe_classes": ("class has|classes have", "a name that is no text"),
    "images_missing": ("image is|images are", "not in the image folder"),
    "images_unreadable": ("image|images", "cannot be decoded"),
    "images_in_train_too": ("image is|images are", "in the training split too"),
}
WARNINGS = {
    "boxes_outside": ("box reaches|boxes reach", "outside the image by more than a pixel (training clips them)"),
    "boxes_without_area": (
        "box is|boxes are",
        "less than a pixel wide or high, or outside the image (training leaves them out)",
    ),
    "boxes_of_area_0": (
        "box has|boxes have",
        "an `area` of 0 or less (training leaves them out; an area that is not in the file is computed)",
    ),
    "crowd_boxes": (
        "box is|boxes are",
        "marked as crowd (training leaves them out, evaluation ignores what they cover)",
    ),
    "ignored_boxes": ("box is|boxes are", "marked `ignore` (training leaves them out, evaluation counts them)"),
    "images_listed_twice": ("file name stands|file names stand", "in the file more than once"),
    "images_of_other_size": ("image has|images have", "another size than the file says"),
    "images_left_out": ("image is|images are", "missing or cannot be decoded, and left out"),
    "classes_without_boxes": ("class has|classes have", "no box"),
}

# Found by decoding images, as many as `machine.check_images` says: in the log, and not in the manifest, which does not
# depend on a setting of the machine.
BY_DECODING = ("images_of_other_size", "images_left_out")


class Findings:
    """Kind of finding -> how many, and what is said of them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._sentences: dict[str, str] = {}
        self._refusals: list[str] = []

    def add(self, kind: str, examples: Sequence[Any], words: Callable[[Any], str] = str) -> None:
        """Note `len(examples)` findings of a kind, if any; `words` says the first one."""
        if len(examples):
            subject, rest = (ERRORS | WARNINGS)[kind]
            self._counts[kind] = len(examples)
            self._sentences[kind] = f"{count(len(examples), subject)} {rest}, for example {words(examples[0])}"

    def refuse(self, sentence: str) -> None:
        """Note an error that is none of a number of findings."""
        self._refusals.append(sentence)

    def counts(self, severity: str) -> dict[str, int]:
        """The findings that are an "error" or a "warning"."""
        known = ERRORS if severity == "error" else WARNINGS
        return {kind: self._counts[kind] for kind in known if kind in self._counts}

    def errors(self) -> list[str]:
        """What is said of the errors."""
        return [*map(self.sentence, self.counts("error")), *self._refusals]

    def stop_at_errors(self, path: Path) -> None:
        """Raise one `InputError` that names all errors of the annotation file `path`, if there are any."""
        if errors := self.errors():
            raise InputError(f"{path}: {'; '.join(errors)}")

    def sentence(self, kind: str) -> str:
        """Such as `3 images are not in the image folder, for example 1.jpg`."""
        return self._sentences[kind]
