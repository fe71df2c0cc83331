"""Where each benchmark's files lie in public. Facts only; nothing here is asked for before `prepare`.

Names, ids and columns: the repositories AdaptVis (arXiv 2503.01773) and whatsup_vlms (arXiv 2310.19785; the
Google Drive ids), the cards of the hub data sets named below, cocodataset.org/#download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Text: configs as below, split test; id, question, answer (a list), and image_id (COCO: a number, VG: a text) or
# image_path (Controlled).
TEXT = "AdaptVis/all_datasets"
# Captions and images: one split per upstream name; image_options (described as a list of images, used as one image in
# public code: both are read) and caption_options (the right one first). That its rows stand in the order of the text
# is (unverified) and therefore checked row by row.
IMAGES = "ServiceNow/whatsup_all"
# train.jsonl, dev.jsonl, test.jsonl; image, image_link (COCO train2017), caption, label, relation.
VSR = "cambridgeltl/vsr_zeroshot"
COCO = "http://images.cocodataset.org"  # /val2017/NAME, /train2017/NAME, /zips/val2017.zip, /zips/train2017.zip
DRIVE = "https://drive.google.com"  # /uc?id=ID
COCO_IMAGE = 163_000  # bytes, the mean of val2017


@dataclass(frozen=True, slots=True)
class Source:
    """Of one benchmark: its config of TEXT, the Drive id of its annotation, its archive of images and that one's id."""

    text: str
    annotation: str
    archive: str
    images: str


_A = ("controlled_images.tar.gz", "19KGYVQjrV3syb00GgcavB2nZTW5NXX0H")
_B = ("controlled_clevr.tar.gz", "13jdBpg8t3NqW3jrL6FK8HO93vwsUjDxG")
_VAL = ("val2017.zip", "1zp5vBRRM4_nSik6o9PeVspDvOsHgPT4l")
_VG = ("vg_images.tar.gz", "1idW7Buoz7fQm4-670n-oERw9U-2JLJvE")
SOURCES = {
    "Controlled_Images_A": Source("Controlled_A", "1ap8mmmpQjLIjPGuplkpBgc1hoEHCj4hm", *_A),
    "Controlled_Images_B": Source("Controlled_B", "1unNNosLbdy9NDjgj4l8fsQP3WiAAGA6z", *_B),
    "COCO_QA_one_obj": Source("COCO_one_obj", "1RsMdpE9mmwnK4zzMPpC1-wTU_hNis-dq", *_VAL),
    "COCO_QA_two_obj": Source("COCO_two_obj", "1TCEoM0mgFmz8T4cF7PQ3XJmO6JjtiQ-s", *_VAL),
    "VG_QA_one_obj": Source("VG_one_obj", "1ARMRzRdohs9QTr1gpIfzyUzvW20wYp_p", *_VG),
    "VG_QA_two_obj": Source("VG_two_obj", "1sjVG5O3QMY8s118k7kQM8zzDZH12i_95", *_VG),
}
WAYS = ("hub", "drive", "files")
COCO_WAYS: Mapping[str, str] = {"url": "each picture by its URL", "archive": "the whole archive of its year"}


@dataclass(frozen=True, slots=True)
class Way:
    """How `prepare` was asked to get files.

    Attributes:
        source: a member of WAYS. folder: where the upstream files lie, for `files`.
        pictures: a key of COCO_WAYS. coco, drive: servers.
    """

    source: str = "hub"
    folder: Path | None = None
    pictures: str = "url"
    coco: str = COCO
    drive: str = DRIVE
