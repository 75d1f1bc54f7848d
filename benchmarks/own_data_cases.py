"""The data sets of `benchmarks.own_data`: where they lie, and what is known to be odd in them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """One data set, paths relative to its folder."""

    name: str
    folder: str
    train: tuple[str, ...] = (".",)  # sources of convert
    val: tuple[str, ...] = ()  # the owner's own part; none: `split`
    split: str = ""  # neither: trained and evaluated on the same pictures
    convert: tuple[str, ...] = ()  # further options
    also: tuple[str, ...] = ()  # folders of pictures that must not be in the sources
    scale: float = 1.0  # of --size, where objects are small
    converts: bool = True
    trains: bool = True
    # What the set's own notes tell: what, codes of findings joined by "|" or "refused: <message>",
    # and how often (0: at least once).
    odd: tuple[tuple[str, str, int], ...] = ()
    note: str = ""


_TWINS = "annotated-twice|duplicate-picture|near-duplicate"
_CAR_LEAK = ("test/66 is train/17 (and a cropped pair that no note tells)", "leak", 2)
_CAR_TWINS = ("48 is 25 (and two pairs more)", _TWINS, 3)
_FURNITURE = (
    ("PNGs named .jpg", "wrong-suffix", 4),
    ("points a little below 0 percent", "outside", 4),
    ("one photo labelled two ways", "annotated-twice", 1),
)
_ODD = "coco_odd_exports"


def _odd(name: str, source: str, *odd: tuple[str, str, int]) -> Case:
    return Case(f"odd_{name}", _ODD, (source,), odd=odd, converts=False)


CASES = (
    Case(
        "coco_tiny",
        "coco_tiny/annotations",
        ("instances_train2017.json",),
        ("instances_val2017.json",),
        convert=("--keep-category-ids",),
        odd=(("category ids with gaps", "ids-with-gaps", 2),),
    ),
    Case(
        "coco128_seg",
        "coco128_seg",
        split="0.75/0.25",
        convert=("--classes", "coco"),
        odd=(
            ("images without a label file", "no-labels", 2),
            ("label files without an image", "missing-image", 2),
        ),
    ),
    Case(
        "car_damage_1",
        "car_damage_via",
        ("train/via_region_data.json",),
        ("val/via_region_data.json",),
        also=("test",),
        odd=(("polygons over the border", "outside", 1), _CAR_TWINS, _CAR_LEAK),
    ),
    Case(
        "car_damage_5",
        "car_damage_via",
        ("train/train_multiclass.json",),
        ("val/val_multiclass.json",),
        also=("test",),
        odd=(("polygons over the border", "outside", 11), _CAR_TWINS, _CAR_LEAK),
    ),
    Case(
        "labelme_date_fig_hazelnut",
        "labelme_date_fig_hazelnut",
        split="0.67/0.33",
    ),
    Case(
        "furniture_labelstudio",
        "furniture_labelstudio",
        ("label_studio.json",),
        split="0.75/0.25",
        odd=_FURNITURE,
    ),
    Case(
        "mushrooms_roboflow",
        "mushrooms_roboflow",
        ("train", "test"),  # test has the fullest picture
        ("valid",),
        convert=("--class-map", "Mushrooms-DLcx="),
        scale=2.0,
        odd=(
            ("a made-up super-category", "dummy-class", 3),
            ("category ids from 0", "category-zero", 3),
            ("areas of boxes passed off as areas", "box-area", 0),
            ("augmented copies of one photo", "near-duplicate", 13),
            ("more than 100 objects a picture", "over-cap", 31),
        ),
        note="COCO's AP counts 100 detections a picture, these have up to 318 objects",
    ),
    Case(
        "pedestrians_instance_png",
        "pedestrians_instance_png",
        convert=("--default-class", "person"),
        note="one labelled picture: trained and evaluated on it",
    ),
    Case(
        "road_video_labelme",
        "road_video_labelme",
        split="0.8/0.2",
        convert=("--no-twins",),
        odd=(("successive frames", "near-duplicate", 1),),
        note="five frames of one scene, so that --split asks for --no-twins: AP is of a picture "
        "nearly seen",
    ),
    Case(
        "furniture_coco_export",
        "furniture_labelstudio",
        ("result.json",),
        split="0.75/0.25",
        trains=False,
        odd=(
            ("Windows back-slashes", "back-slash", 60),
            ("category ids from 0", "category-zero", 1),
            *_FURNITURE,
        ),
    ),
    Case(
        "car_attributes",
        "car_damage_via",
        ("train/car-damage-train_attributes.json",),
        converts=False,
        odd=(("attribute definitions, no regions", "refused: attributes", 1),),
    ),
    _odd(
        "missing_image",
        "horse_dog_one_image_missing",
        ("a picture is listed and not there", "missing-image", 1),
    ),
    _odd(
        "boxes_only",
        "street_no_segmentation_key/labels.json",
        ("no 'segmentation' key", "no-segmentation", 130),
        ("category ids from 0", "category-zero", 1),
    ),
    _odd(
        "empty_segmentations",
        "cvat_boxes_empty_segmentation/annotations/instances_default.json",
        ("every 'segmentation' is []", "no-segmentation", 19),
    ),
    _odd(
        "no_json",
        "hand_written_invalid/invalid_json_tab_in_key.json",
        ("raw tab inside a string, line 28", "refused: not valid JSON at line 28", 1),
    ),
    _odd(
        "orphan_id",
        "hand_written_invalid/annotation_points_to_no_image.json",
        ("image_id that does not exist", "orphan-image-id", 1),
    ),
    _odd(
        "box_outside",
        "hand_written_invalid/box_outside_image.json",
        ("a box leaves the image", "box-far-outside", 1),
        ("'segmentation' is empty", "no-segmentation", 1),
    ),
)
