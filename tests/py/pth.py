"""Reads the state dict of a PyTorch file without PyTorch: load(path) gives {name: numpy array}.

Both formats are read: the zip archive, and the one before it (a sequence of pickles, then the storages). Nothing but
tensors and plain containers is unpickled; any other class in the file is an error.
"""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
}
# What a pickled tensor is until its storage has been read.
View = collections.namedtuple("View", "storage offset shape stride")


class Unpickler(pickle.Unpickler):
    """Tensors become views of (type, key) pairs; `types` collects the type of each storage."""

    def __init__(self, file):
        super().__init__(file)
        self.types = {}

    def find_class(self, module, name):
        if name in STORAGES:
            return name
        known = {
            "_rebuild_tensor_v2": lambda storage, offset, shape, stride, *_: View(storage, offset, shape, stride),
            "_rebuild_parameter": lambda data, *_: data,
            "OrderedDict": collections.OrderedDict,
        }
        if name not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a state dict")
        return known[name]

    def persistent_load(self, pid):
        _, kind, key, *_ = pid
        self.types[key] = kind
        return key


def load(path):
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            index = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            reader = Unpickler(io.BytesIO(archive.read(index)))
            views = reader.load()
            read = lambda key: archive.read(f"{index[:-8]}data/{key}")
            storages = {k: np.frombuffer(read(k), STORAGES[t]) for k, t in reader.types.items()}
    else:
        with open(path, "rb") as file:
            for _ in range(3):  # Magic number, version, facts about the machine.
                pickle.load(file)
            reader = Unpickler(file)
            views = reader.load()
            storages = {}
            for key in pickle.load(file):
                (count,) = struct.unpack("<q", file.read(8))
                dtype = np.dtype(STORAGES[reader.types[key]])
                storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {name: array(view, storages[view.storage]) for name, view in views.items() if isinstance(view, View)}


def array(view, storage):
    strides = [s * storage.itemsize for s in view.stride]
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides).copy()
