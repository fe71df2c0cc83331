"""List where each benchmark's files are public, and the options of `prepare`. Data only, light to import.

Names, ids and columns: the repositories AdaptVis (arXiv 2503.01773) and whatsup_vlms (arXiv 2310.19785; the Google
Drive ids), the cards of the hub data sets named below, cocodataset.org/#download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DATA_KINDS = ("whatsup", "vsr", "hub", "public")  # kinds of the datasets that lie in a data_dir
# Text: configs as below, split test; id, question, answer (a list), and image_id (COCO: a number, VG: a text) or
# image_path (Controlled).
TEXT = "AdaptVis/all_datasets"
# Captions and images: one split per upstream name; image_options (described as a list of images, used as one image in
# public code: both are read) and caption_options (the right one first). That its rows stand in the order of the text
# is (unverified) and therefore checked row by row.
IMAGES = "ServiceNow/whatsup_all"
# train.jsonl, dev.jsonl, test.jsonl; image, image_link (COCO train2017 or val2017), caption, label, relation. By the
# beginning of dataset.file.
VSR = {"zeroshot": "cambridgeltl/vsr_zeroshot", "random": "cambridgeltl/vsr_random"}
COCO = "http://images.cocodataset.org"  # /YEAR/NAME, /zips/YEAR.zip: val2014, val2017, train2017
GITHUB = "https://raw.githubusercontent.com"  # /ORGANISATION/NAME/COMMIT/FILE
DRIVE = "https://drive.google.com"  # /uc?id=ID
COCO_IMAGE_BYTES = 163_000  # the mean of val2017


@dataclass(frozen=True, slots=True)
class Upstream:
    """Describe where one benchmark's files are public.

    Attributes:
        text: its config of TEXT. annotation: Drive id of its annotation. archive: name of its image archive.
        images: Drive id of that archive.
    """

    text: str
    annotation: str
    archive: str
    images: str


@dataclass(frozen=True, slots=True)
class PublicSource:
    """Describe where the questions and pictures of a public file come from.

    Attributes:
        questions: below GITHUB, at a commit; `{split_name}` as in the file's own name. corrections: likewise, of the
            tables that dataset.corrections names. coco: COCO's year of the pictures; "" = they come in one archive,
            which the user downloads.
        archive: name of that archive.
    """

    questions: str
    coco: str = ""
    archive: str = ""
    corrections: Mapping[str, str] = field(default_factory=dict)


_REPOPE = "YanNeu/RePOPE/bcf22e5690d587cce34e1728af3efdcfaf747d29/annotations/coco_repope_{split_name}.json"
_POPE = "AoiDragon/POPE/08d957b917e5a378a2f99d35b6293c536a66298b/output"
PUBLIC = {
    "pope_coco": PublicSource(
        f"{_POPE}/coco/coco_pope_{{split_name}}.json", "val2014", corrections={"repope": _REPOPE}
    ),
    "pope_aokvqa": PublicSource(f"{_POPE}/seem/aokvqa/aokvqa_pope_seem_{{split_name}}.json", "val2014"),
    "pope_gqa": PublicSource(f"{_POPE}/seem/gqa/gqa_pope_seem_{{split_name}}.json", archive="images.zip"),
}

_A = ("controlled_images.tar.gz", "19KGYVQjrV3syb00GgcavB2nZTW5NXX0H")
_B = ("controlled_clevr.tar.gz", "13jdBpg8t3NqW3jrL6FK8HO93vwsUjDxG")
_VAL = ("val2017.zip", "1zp5vBRRM4_nSik6o9PeVspDvOsHgPT4l")
_VG = ("vg_images.tar.gz", "1idW7Buoz7fQm4-670n-oERw9U-2JLJvE")
UPSTREAMS = {
    "Controlled_Images_A": Upstream("Controlled_A", "1ap8mmmpQjLIjPGuplkpBgc1hoEHCj4hm", *_A),
    "Controlled_Images_B": Upstream("Controlled_B", "1unNNosLbdy9NDjgj4l8fsQP3WiAAGA6z", *_B),
    "COCO_QA_one_obj": Upstream("COCO_one_obj", "1RsMdpE9mmwnK4zzMPpC1-wTU_hNis-dq", *_VAL),
    "COCO_QA_two_obj": Upstream("COCO_two_obj", "1TCEoM0mgFmz8T4cF7PQ3XJmO6JjtiQ-s", *_VAL),
    "VG_QA_one_obj": Upstream("VG_one_obj", "1ARMRzRdohs9QTr1gpIfzyUzvW20wYp_p", *_VG),
    "VG_QA_two_obj": Upstream("VG_two_obj", "1sjVG5O3QMY8s118k7kQM8zzDZH12i_95", *_VG),
}
# What a checkout of the upstream code has under data/, and its prompts/ beside data/.
CHECKOUT = (
    *("controlled_images_dataset.json", "controlled_clevr_dataset.json"),
    *("coco_qa_one_obj.json", "coco_qa_two_obj.json", "vg_qa_one_obj.json", "vg_qa_two_obj.json"),
    *("controlled_images", "controlled_clevr", "val2017", "train2017", "vg_images"),
    *("prompts", "vsr", "images", "annotations"),
)
SOURCES = ("hub", "drive", "files")
COCO_WAYS: Mapping[str, str] = {"url": "each picture by its URL", "archive": "the whole archive of its year"}


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Hold the places from which `prepare` takes files.

    Attributes:
        source: a member of SOURCES. folder: where the upstream files lie, for `files`.
        pictures: a key of COCO_WAYS. coco, drive, github: addresses of servers.
    """

    source: str = "hub"
    folder: Path | None = None
    pictures: str = "url"
    coco: str = COCO
    drive: str = DRIVE
    github: str = GITHUB


# How image files begin, and what they are called then.
SUFFIXES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
}
