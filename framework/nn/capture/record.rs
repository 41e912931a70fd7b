//! Runs a forward pass on burn's capture device twice, with other batch sizes and lengths of sequences, and compares the
//! recordings: a dimension that is one batch size here and the other there is the batch, likewise the length; nothing
//! else may differ.

use super::{CaptureError, Outputs};
use burn::backend::DispatchDevice;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use burn_capture::{CaptureBackend, CaptureChannel, CapturedGraph, TensorId};
use burn_ir::{BaseOperationIr, IrVisitorMut, OperationIr, TensorIr, TensorStatus};
use burn_router::{RouterChannel, RouterClient, RouterTensor, get_client};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

const BATCHES: [usize; 2] = [2, 3];
const LENGTHS: [usize; 2] = [5, 7];

/// A dimension of a recorded tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Fixed(usize),
    /// How many images or sequences there are.
    Batch,
    /// How long sequences are.
    Length,
}

impl Extent {
    /// In the first or second recording.
    fn at(self, recording: usize) -> usize {
        match self {
            Extent::Fixed(n) => n,
            Extent::Batch => BATCHES[recording],
            Extent::Length => LENGTHS[recording],
        }
    }
}

/// One input of a forward pass.
#[derive(Clone, Debug)]
pub struct InputSpec<'a> {
    pub name: &'a str,
    /// Integers are i64, other numbers f32.
    pub integers: bool,
    pub dims: Vec<Extent>,
}

/// An input without elements, so that a forward pass that reads them fails instead of recording one case of many.
pub struct Unknown(RouterTensor<<CaptureChannel as RouterChannel>::Client>);

impl Unknown {
    fn new(spec: &InputSpec<'_>, recording: usize, device: &Device) -> (Unknown, TensorId) {
        let DispatchDevice::Capture(capture) = device.as_dispatch() else {
            unreachable!("the device was made by Device::capture")
        };
        let client = get_client::<CaptureChannel>(capture);
        let id = client.create_empty_handle();
        let dims: Vec<usize> = spec.dims.iter().map(|extent| extent.at(recording)).collect();
        let dtype = if spec.integers { DType::I64 } else { DType::F32 };
        (Unknown(RouterTensor::new(id, Shape::from(dims), dtype, client)), id)
    }

    pub fn float<const D: usize>(self) -> Tensor<D> {
        Tensor::from_primitive::<CaptureBackend>(self.0)
    }

    pub fn int<const D: usize>(self) -> Tensor<D, Int> {
        Tensor::from_primitive::<CaptureBackend>(self.0)
    }
}

/// A recorded forward pass whose dimensions are known.
pub struct Trace {
    pub ops: Vec<OperationIr>,
    pub inputs: Vec<TensorId>,
    pub outputs: Vec<TensorId>,
    /// Tensors with known elements: parameters, and what the forward pass made from numbers.
    pub values: BTreeMap<TensorId, TensorData>,
    /// Module path of each parameter.
    pub paths: HashMap<TensorId, String>,
    /// For every tensor that depends on a parameter: the path of the nearest one, for messages.
    pub near: HashMap<TensorId, String>,
    pub extents: HashMap<TensorId, Vec<Extent>>,
}

impl Trace {
    /// The path of a parameter that `op` reads, or of the nearest one before it.
    pub fn near(&self, op: &OperationIr) -> String {
        nearest(op, &self.paths, &self.near).unwrap_or_else(|| "input".to_string())
    }
}

pub fn trace<M: Module, O: Outputs>(
    module: &M,
    specs: &[InputSpec<'_>],
    forward: &impl Fn(&M, Vec<Unknown>) -> O,
) -> Result<Trace, CaptureError> {
    let first = record(module, specs, 0, forward)?;
    unify(first, &record(module, specs, 1, forward)?)
}

struct Recording {
    graph: CapturedGraph,
    inputs: Vec<TensorId>,
    outputs: Vec<TensorId>,
    paths: HashMap<TensorId, String>,
}

thread_local! {
    // Ids of capture devices are never reused and end at 65,536: one device per thread lasts.
    static CAPTURE: Device = Device::capture();
}

fn record<M: Module, O: Outputs>(
    module: &M,
    specs: &[InputSpec<'_>],
    recording: usize,
    forward: &impl Fn(&M, Vec<Unknown>) -> O,
) -> Result<Recording, CaptureError> {
    let batch = BATCHES[recording];
    let device = CAPTURE.with(Device::clone);
    let mut paths = Paths::default();
    let (mut inputs, mut returned) = (Vec::new(), Vec::new());
    let scope = catch_unwind(AssertUnwindSafe(|| {
        device.capture_scope(|scope| {
            // `valid` first: running states of burn's own layers are shared by clones, and `to_device` alone would
            // move them away from the module.
            let local = module.valid().to_device(&device);
            local.visit(&mut paths);
            let (given, ids): (Vec<Unknown>, Vec<TensorId>) =
                specs.iter().map(|spec| Unknown::new(spec, recording, &device)).unzip();
            inputs.clone_from(&ids);
            forward(&local, given).ids(&mut returned);
            let mut unique: Vec<TensorId> = returned.iter().copied().flatten().collect();
            unique.sort_unstable();
            unique.dedup();
            scope.complete(ids, unique)
        })
    }));
    let graph = scope.map_err(|panic| CaptureError::Forward { batch, why: panic_text(&*panic) })?;
    let outputs: Vec<TensorId> = returned.iter().copied().flatten().collect();
    if let Some(index) = returned.iter().position(Option::is_none) {
        let why = "does not depend on the input: it is not on the capture device".to_string();
        return Err(CaptureError::Output { index, why });
    }
    let graph = graph.map_err(|e| match e {
        burn_capture::CaptureError::UnknownBoundary { boundary: "input", .. } => {
            CaptureError::Output { index: 0, why: "no op of the forward pass reads an input".to_string() }
        }
        e => CaptureError::Recording(e),
    })?;
    Ok(Recording { graph, inputs, outputs, paths: paths.map })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_string()
}

#[derive(Default)]
struct Paths {
    stack: Vec<String>,
    map: HashMap<TensorId, String>,
}

impl ModuleVisitor for Paths {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.stack.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.stack.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Ok(t) = param.val().try_into_primitive::<CaptureBackend>() {
            self.map.insert(t.id(), self.stack.join("."));
        }
    }
}

// ---- comparing -------------------------------------------------------------------------------------

/// Renames tensors in order of appearance and sets shapes aside, so that two recordings compare by what they do.
#[derive(Default)]
struct Canonical {
    number: HashMap<TensorId, u64>,
    tensors: Vec<TensorIr>,
}

impl IrVisitorMut for Canonical {
    fn visit_tensor_mut(&mut self, t: &mut TensorIr) {
        self.tensors.push(t.clone());
        t.id = TensorId::new(self.number_of(t.id));
        t.shape = Shape::from(Vec::<usize>::new());
        t.status = TensorStatus::ReadOnly;
    }
}

impl Canonical {
    fn number_of(&mut self, id: TensorId) -> u64 {
        let next = self.number.len() as u64;
        *self.number.entry(id).or_insert(next)
    }

    fn of(&mut self, op: &OperationIr) -> OperationIr {
        self.tensors.clear();
        let mut op = op.clone();
        op.visit_mut(self);
        // Where a slice ends, the shape of its result says.
        if let OperationIr::BaseFloat(BaseOperationIr::Slice(slice)) = &mut op {
            slice.ranges.iter_mut().for_each(|range| range.end = None);
        }
        op
    }
}

fn unify(a: Recording, b: &Recording) -> Result<Trace, CaptureError> {
    let near = nearest_paths(&a.graph.graph.operations, &a.paths);
    let fail = |op: &OperationIr, why: String| CaptureError::Batch {
        op: op_name(op),
        near: nearest(op, &a.paths, &near).unwrap_or_else(|| "input".to_string()),
        why,
    };
    let (ops_a, ops_b) = (&a.graph.graph.operations, &b.graph.graph.operations);
    let (mut canonical_a, mut canonical_b) = (Canonical::default(), Canonical::default());
    let mut extents = HashMap::new();
    for (op, other) in ops_a.iter().zip(ops_b) {
        if canonical_a.of(op) != canonical_b.of(other) {
            let why = format!("at batch size {} it is {}, or has other numbers", BATCHES[1], op_name(other));
            return Err(fail(op, why));
        }
        for (ta, tb) in canonical_a.tensors.iter().zip(&canonical_b.tensors) {
            let shape = shape_of(&ta.shape, &tb.shape).ok_or_else(|| {
                let (a, b) = (ta.shape.to_vec(), tb.shape.to_vec());
                fail(
                    op,
                    format!(
                        "shapes {a:?} and {b:?} differ otherwise than by the batch size itself or the length"
                    ),
                )
            })?;
            let same = match (a.graph.values.get(&ta.id), b.graph.values.get(&tb.id)) {
                (Some(va), Some(vb)) => va.as_bytes() == vb.as_bytes(),
                (va, vb) => va.is_none() && vb.is_none(),
            };
            if !same {
                return Err(fail(op, "it reads a constant that changes with the batch size".to_string()));
            }
            extents.insert(ta.id, shape);
        }
    }
    if let Some(op) = ops_a.get(ops_b.len()).or_else(|| ops_b.get(ops_a.len())) {
        return Err(fail(op, "it is there for one batch size only".to_string()));
    }
    let ends = |r: &Recording, c: &mut Canonical| -> Vec<u64> {
        r.outputs.iter().chain(&r.inputs).map(|&id| c.number_of(id)).collect()
    };
    if ends(&a, &mut canonical_a) != ends(b, &mut canonical_b) {
        let why = "is another tensor when the batch size changes".to_string();
        return Err(CaptureError::Output { index: 0, why });
    }
    let Recording { graph, inputs, outputs, paths } = a;
    Ok(Trace { ops: graph.graph.operations, inputs, outputs, values: graph.values, paths, near, extents })
}

fn shape_of(a: &Shape, b: &Shape) -> Option<Vec<Extent>> {
    let (a, b) = (a.to_vec(), b.to_vec());
    if a.len() != b.len() {
        return None;
    }
    a.into_iter()
        .zip(b)
        .map(|(a, b)| match (a, b) {
            (a, b) if a == b => Some(Extent::Fixed(a)),
            (a, b) if [a, b] == BATCHES => Some(Extent::Batch),
            (a, b) if [a, b] == LENGTHS => Some(Extent::Length),
            _ => None,
        })
        .collect()
}

fn nearest_paths(ops: &[OperationIr], paths: &HashMap<TensorId, String>) -> HashMap<TensorId, String> {
    let mut near = HashMap::new();
    for op in ops {
        if let Some(path) = nearest(op, paths, &near) {
            for t in op.outputs().filter(|t| !paths.contains_key(&t.id)) {
                near.insert(t.id, path.clone());
            }
        }
    }
    near
}

fn nearest(
    op: &OperationIr,
    paths: &HashMap<TensorId, String>,
    near: &HashMap<TensorId, String>,
) -> Option<String> {
    let own = op.inputs().find_map(|t| paths.get(&t.id));
    own.or_else(|| op.inputs().find_map(|t| near.get(&t.id))).cloned()
}

/// burn's name of the op: `Gelu` of `Activation(Gelu(UnaryOpIr { .. }))`.
pub fn op_name(op: &OperationIr) -> String {
    if let OperationIr::Custom(op) = op {
        return op.id.clone();
    }
    let text = format!("{op:?}");
    let head = text.split(" {").next().unwrap_or(&text);
    let mut parts = head.rsplit('(');
    let last = parts.next().unwrap_or(head);
    let name = parts.next().unwrap_or(last);
    name.rsplit(", ").next().unwrap_or(name).to_string()
}
