"""List papers and licences of the methods, benchmarks and models that this package names. Data alone.

Titles, authors, venues, years and eprint numbers were compared with the publishers' pages (PMLR, CVF Open Access,
ECVA, ACL Anthology, OpenReview), arXiv's, or the BibTeX of the authors' repositories. Each licence has the page that
states it; a licence without such a page is not listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """Hold a paper and its key in BibTeX."""

    key: str
    authors: str
    title: str
    year: int
    arxiv: str
    venue: str = ""


@dataclass(frozen=True, slots=True)
class Licence:
    """Hold the name of a licence and the page that states it (`source`)."""

    name: str
    source: str


ADAPT_VIS = Source(
    "chen2025spatial",
    "Chen, Shiqi and Zhu, Tongyao and Zhou, Ruochen and Zhang, Jinghan and Gao, Siyang and Niebles, Juan Carlos and "
    "Geva, Mor and He, Junxian and Wu, Jiajun and Li, Manling",
    "Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective on Focus Areas",
    2025,
    "2503.01773",
    "ICML 2025, PMLR 267:9910-9932",
)
PAI = Source(
    "liu2024pai",
    "Liu, Shi and Zheng, Kecheng and Chen, Wei",
    "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs",
    2024,
    "2407.21771",
    "ECCV 2024",
)
# By what the column `settings` of results.csv says.
SCALING_SOURCES: Mapping[str, Source] = {
    "scaling=pai": PAI,
    "scaling=head_guided": Source(
        "jiang2024devils",
        "Jiang, Zhangqi and others",
        "Devils in Middle Layers of Large Vision-Language Models: Interpreting, Detecting and Mitigating Object "
        "Hallucinations via Attention Lens",
        2024,
        "2411.16724",
        "CVPR 2025",
    ),
}
# By the column `method` of results.csv.
METHOD_SOURCES: Mapping[str, Source] = {
    "vaf": Source(
        "yin2025clearsight",
        "Yin, Hao and Si, Guangzong and Wang, Zilei",
        "ClearSight: Visual Signal Enhancement for Object Hallucination Mitigation in Multimodal Large Language Models",
        2025,
        "2503.13107",
        "CVPR 2025",
    ),
    "var": Source(
        "kang2025see",
        "Kang, Seil and Kim, Jinyeong and Kim, Junhyeok and Hwang, Seong Jae",
        "See What You Are Told: Visual Attention Sink in Large Multimodal Models",
        2025,
        "2503.03321",
        "ICLR 2025",
    ),
    "sparc": Source(
        "jung2025sparc",
        "Jung, Mingi and Lee, Saehyung and Kim, Eunji and Yoon, Sungroh",
        "Visual Attention Never Fades: Selective Progressive Attention ReCalibration for Detailed Image Captioning in "
        "Multimodal Large Language Models",
        2025,
        "2502.01419",
    ),
    "scaling_vis": ADAPT_VIS,
    "adapt_vis": ADAPT_VIS,
    "route": ADAPT_VIS,
    "vcd": Source(
        "leng2024vcd",
        "Leng, Sicong and Zhang, Hang and Chen, Guanzheng and Li, Xin and Lu, Shijian and Miao, Chunyan and "
        "Bing, Lidong",
        "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding",
        2024,
        "2311.16922",
        "CVPR 2024",
    ),
    "text": PAI,
    "pai_full": PAI,
    "m3id": Source(
        "favero2024m3id",
        "Favero, Alessandro and Zancato, Luca and Trager, Matthew and Choudhary, Siddharth and Perera, Pramuditha and "
        "Achille, Alessandro and Swaminathan, Ashwin and Soatto, Stefano",
        "Multi-Modal Hallucination Control by Visual Information Grounding",
        2024,
        "2403.14003",
        "CVPR 2024, pages 14303-14312",
    ),
    "sla": Source(
        "li2025vista",
        "Li, Zhuowei and Shi, Haizhou and Gao, Yunhe and Liu, Di and Wang, Zhenting and Chen, Yuxiao and Liu, Ting and "
        "Zhao, Long and Wang, Hao and Metaxas, Dimitris N.",
        "The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via Visual Information "
        "Steering",
        2025,
        "2502.03628",
        "ICML 2025",
    ),
    "dola": Source(
        "chuang2024dola",
        "Chuang, Yung-Sung and Xie, Yujia and Luo, Hongyin and Kim, Yoon and Glass, James and He, Pengcheng",
        "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models",
        2024,
        "2309.03883",
        "ICLR 2024",
    ),
    "forced_yes": Source(
        "yin2025mirage",
        "Yin, Hao and Si, Guangzong and Wang, Zilei",
        "The Mirage of Performance Gains: Why Contrastive Decoding Fails to Mitigate Object Hallucinations in MLLMs?",
        2025,
        "2504.10020",
    ),
}
BLINK = Source(
    "fu2024blink",
    "Fu, Xingyu and Hu, Yushi and Li, Bangzheng and Feng, Yu and Wang, Haoyu and Lin, Xudong and Roth, Dan and "
    "Smith, Noah A. and Ma, Wei-Chiu and Krishna, Ranjay",
    "BLINK: Multimodal Large Language Models Can See but Not Perceive",
    2024,
    "2404.12390",
    "ECCV 2024, pages 148-166",
)
POPE = Source(
    "li2023pope",
    "Li, Yifan and Du, Yifan and Zhou, Kun and Wang, Jinpeng and Zhao, Wayne Xin and Wen, Ji-Rong",
    "Evaluating Object Hallucination in Large Vision-Language Models",
    2023,
    "2305.10355",
    "EMNLP 2023",
)
# By the name of a dataset's public file, else its repository on the hub, else its kind in sweep.json.
DATASET_SOURCES: Mapping[str, Source] = {
    "WhatsUp": Source(
        "kamath2023whatsup",
        "Kamath, Amita and Hessel, Jack and Chang, Kai-Wei",
        "What's ``up'' with vision-language models? Investigating their struggle with spatial reasoning",
        2023,
        "2310.19785",
        "EMNLP 2023",
    ),
    "Vsr": Source(
        "liu2023vsr",
        "Liu, Fangyu and Emerson, Guy and Collier, Nigel",
        "Visual Spatial Reasoning",
        2023,
        "2205.00363",
        "TACL 11:635-651",
    ),
    "nyu-visionx/CV-Bench": Source(
        "tong2024cambrian",
        "Tong, Shengbang and Brown, Ellis and Wu, Penghao and Woo, Sanghyun and Middepogu, Manoj and "
        "Akula, Sai Charitha and Yang, Jihan and Yang, Shusheng and Iyer, Adithya and Pan, Xichen and Wang, Austin and "
        "Fergus, Rob and LeCun, Yann and Xie, Saining",
        "Cambrian-1: A Fully Open, Vision-Centric Exploration of Multimodal LLMs",
        2024,
        "2406.16860",
        "NeurIPS 2024",
    ),
    "BLINK-Benchmark/BLINK": BLINK,
    "FlagEval/EmbSpatial-Bench": Source(
        "du2024embspatial",
        "Du, Mengfei and Wu, Binhao and Li, Zejun and Huang, Xuanjing and Wei, Zhongyu",
        "EmbSpatial-Bench: Benchmarking Spatial Understanding for Embodied Tasks with Large Vision-Language Models",
        2024,
        "2406.05756",
    ),
    "lmms-lab-eval/MMVP": Source(
        "tong2024eyes",
        "Tong, Shengbang and Liu, Zhuang and Zhai, Yuexiang and Ma, Yi and LeCun, Yann and Xie, Saining",
        "Eyes Wide Shut? Exploring the Visual Shortcomings of Multimodal LLMs",
        2024,
        "2401.06209",
    ),
    **dict.fromkeys(("pope_coco", "pope_aokvqa", "pope_gqa"), POPE),
}
# By the beginning of a model's hub id.
MODEL_SOURCES: Mapping[str, Source] = {
    "llava-hf/llava-1.5-": Source(
        "liu2024improved",
        "Liu, Haotian and Li, Chunyuan and Li, Yuheng and Lee, Yong Jae",
        "Improved Baselines with Visual Instruction Tuning",
        2024,
        "2310.03744",
        "CVPR 2024, pages 26296-26306",
    ),
}
_HUB = "https://huggingface.co"
_POPE = Licence("MIT (questions)", "https://github.com/AoiDragon/POPE")
# As DATASET_SOURCES. Licences of questions and annotations: pictures of COCO, Visual Genome and others keep their own.
DATASET_LICENCES: Mapping[str, Licence] = {
    "WhatsUp": Licence("MIT", "https://github.com/amitakamath/whatsup_vlms/blob/main/LICENSE"),
    "Vsr": Licence("Apache-2.0", "https://github.com/cambridgeltl/visual-spatial-reasoning"),
    "nyu-visionx/CV-Bench": Licence("Apache-2.0", f"{_HUB}/datasets/nyu-visionx/CV-Bench"),
    "BLINK-Benchmark/BLINK": Licence("Apache-2.0", f"{_HUB}/datasets/BLINK-Benchmark/BLINK"),
    "FlagEval/EmbSpatial-Bench": Licence("CC-BY-4.0", f"{_HUB}/datasets/Phineas476/EmbSpatial-Bench"),
    "lmms-lab-eval/MMVP": Licence("MIT", "https://github.com/tsb0601/MMVP"),
    **dict.fromkeys(("pope_coco", "pope_aokvqa", "pope_gqa"), _POPE),
    "Scenes": Licence("Apache-2.0", "drawn by spatial-eval"),
}
# By a model's path.
MODEL_LICENCES: Mapping[str, Licence] = {
    "llava-hf/llava-1.5-7b-hf": Licence("Llama 2 Community License", f"{_HUB}/llava-hf/llava-1.5-7b-hf"),
    "llava-hf/llava-v1.6-vicuna-7b-hf": Licence(
        "Llama 2 Community License", f"{_HUB}/liuhaotian/llava-v1.6-vicuna-7b, from which it was converted"
    ),
    "package:tiny": Licence("Apache-2.0", "trained for and shipped with spatial-eval"),
    "OpenGVLab/InternVL3-8B-hf": Licence("Qwen license", f"{_HUB}/OpenGVLab/InternVL3-8B-hf"),
    **{
        path: Licence("Apache-2.0", f"{_HUB}/{path}")
        for path in (
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            "Qwen/Qwen2-VL-7B-Instruct",
            "Qwen/Qwen2.5-VL-7B-Instruct",
            "Qwen/Qwen3-VL-8B-Instruct",
        )
    },
}
