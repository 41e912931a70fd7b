"""Scores of detections as COCO's own program gives them: coco_scores.py CASE.json...

A case holds `images` (ids), `categories` (ids), `annotations` and `detections` as COCO writes them. Prints one JSON line for
each: its twelve numbers, -1 where there is nothing to find, and AP and AP50 of each category.
"""

import contextlib
import io
import json
import sys

import numpy
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

for path in sys.argv[1:]:
    with open(path) as file:
        case = json.load(file)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in case["images"]],
            "categories": [{"id": i, "name": str(i)} for i in case["categories"]],
            "annotations": case["annotations"],
        }
        truth.createIndex()
        found = truth.loadRes(case["detections"])
        scores = COCOeval(truth, found, "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    # Overlaps, recalls, categories, areas, numbers of detections.
    precision = scores.eval["precision"][:, :, :, 0, 2]
    by_category = [[float(numpy.mean(p)), float(numpy.mean(p[0]))] for p in numpy.moveaxis(precision, 2, 0)]
    print(json.dumps({"stats": [float(s) for s in scores.stats], "categories": by_category}))
