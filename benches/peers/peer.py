"""One other runtime with one file, in a process of its own: what `compare.py` starts and asks for times.

    python3 benches/peers/peer.py RUNTIME FILE BATCH CORES [HINT PRECISION]

Loads, warms up, writes a line of JSON about itself. Then each line of input is a number of seconds to measure; the
answer is a line with the milliseconds of one batch. With one request at a time that is the median of all runs, with
several in flight the time that passed over the runs that ended. `rss` answers the peak memory instead.
"""

import json
import os
import statistics
import sys
import time

WARM_SECONDS = 0.2


def random_input(name, kind, dims, rng):
    """What a network of images or text may be given; `kind` is a numpy type."""
    if kind.startswith("float"):
        return rng.standard_normal(dims, dtype="float32")
    if "mask" in name:
        return rng.integers(1, 2, dims, dtype=kind)
    return rng.integers(0, 2, dims, dtype=kind)


def timed_runs(run, seconds):
    times, end = [], time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end or not times:
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def onnxruntime(path, batch, cores):
    """Default optimisations, inputs and outputs bound once."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = cores
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    rng = np.random.default_rng(0)
    for port in session.get_inputs():
        kind = {"tensor(float)": "float32", "tensor(int64)": "int64"}[port.type]
        dims = [batch] + [d if isinstance(d, int) else 1 for d in port.shape[1:]]
        binding.bind_cpu_input(port.name, random_input(port.name, kind, dims, rng))
    for port in session.get_outputs():
        binding.bind_output(port.name)
    run = lambda: session.run_with_iobinding(binding)
    return {"version": ort.__version__}, lambda seconds: timed_runs(run, seconds)


def openvino(path, batch, cores, hint, precision):
    """Batch fixed before compiling; inputs set once. `throughput` keeps the number of requests in flight that
    openvino itself says is best."""
    import numpy as np
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    dims = {p.get_any_name(): [batch] + [d.get_length() for d in list(p.partial_shape)[1:]] for p in model.inputs}
    model.reshape(dims)
    options = {
        "PERFORMANCE_HINT": hint.upper(),
        "INFERENCE_NUM_THREADS": cores,
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = core.compile_model(model, "CPU", options)
    rng = np.random.default_rng(0)
    tensors = {
        port: ov.Tensor(random_input(port.get_any_name(), port.element_type.to_dtype().name, dims[port.get_any_name()], rng))
        for port in compiled.inputs
    }
    requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if hint == "throughput" else 1
    about = {"version": ov.__version__.split("-")[0], "requests": requests}
    if requests == 1:
        request = compiled.create_infer_request()
        for port, tensor in tensors.items():
            request.set_tensor(port, tensor)
        return about, lambda seconds: timed_runs(lambda: request.infer(share_outputs=True), seconds)
    queue = ov.AsyncInferQueue(compiled, requests)
    for request in queue:
        for port, tensor in tensors.items():
            request.set_tensor(port, tensor)

    def measure(seconds):
        runs, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds or runs < requests:
            queue.start_async()
            runs += 1
        queue.wait_all()
        return (time.perf_counter() - begin) / runs * 1e3

    return about, measure


def peak_megabytes():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main():
    runtime, path, batch, cores, *mode = sys.argv[1:]
    # Before the runtime counts the processors it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    start = {"onnxruntime": onnxruntime, "openvino": openvino}[runtime]
    about, measure = start(path, int(batch), int(cores), *mode)
    measure(WARM_SECONDS)
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        value = peak_megabytes() if line.strip() == "rss" else measure(float(line))
        print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
