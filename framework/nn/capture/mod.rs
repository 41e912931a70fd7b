//! From a burn module to a [`Graph`]: any forward pass, run at two batch sizes on burn's capture device, becomes rows
//! of the op table, with parameters as named constants.
//!
//! `record` runs the forward pass and finds which dimensions are the batch and the length, `lower` maps recorded ops to rows, `name` names
//! them after the modules their weights belong to.

mod lower;
mod name;
mod record;

use crate::Tokens;
use burn::module::Module;
use burn::tensor::{Int, Tensor};
use burn_capture::CaptureBackend;
pub use burn_capture::TensorId;
use lacuna_ir::{Graph, passes, verify};
use record::{Extent, InputSpec, Unknown};

/// Why a forward pass is not a graph, and where.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The forward pass panicked: shapes that do not fit, or a computed value that it tried to read.
    #[error(
        "the forward pass stopped at batch size {batch}: {why} (computed values cannot be read while recording)"
    )]
    Forward { batch: usize, why: String },
    #[error("the forward pass cannot be recorded: {0}")]
    Recording(burn_capture::CaptureError),
    #[error("op {op} near '{near}': {why}")]
    Op { op: String, near: String, why: String },
    /// Something other than one dimension of a shape changed with the batch size.
    #[error("op {op} near '{near}' depends on the batch size: {why}")]
    Batch { op: String, near: String, why: String },
    #[error("output {index}: {why}")]
    Output { index: usize, why: String },
    #[error("the name '{0}' is empty or given twice: inputs and outputs need distinct names")]
    Name(String),
    #[error(transparent)]
    Graph(#[from] lacuna_ir::Error),
}

/// What a forward pass may return: tensors of any rank, alone, in a vector, or as a tuple.
pub trait Outputs {
    /// Appends the id of each tensor; `None` for one that is not on the capture device.
    fn ids(self, ids: &mut Vec<Option<TensorId>>);
}

impl<const D: usize> Outputs for Tensor<D> {
    fn ids(self, ids: &mut Vec<Option<TensorId>>) {
        ids.push(self.try_into_primitive::<CaptureBackend>().ok().map(|t| t.id()));
    }
}

impl<T: Outputs> Outputs for Vec<T> {
    fn ids(self, ids: &mut Vec<Option<TensorId>>) {
        self.into_iter().for_each(|t| t.ids(ids));
    }
}

macro_rules! outputs_of_tuples {
    ($($($t:ident)+;)*) => {$(
        impl<$($t: Outputs),+> Outputs for ($($t,)+) {
            #[allow(non_snake_case)]
            fn ids(self, ids: &mut Vec<Option<TensorId>>) {
                let ($($t,)+) = self;
                $($t.ids(ids);)+
            }
        }
    )*};
}

outputs_of_tuples! {
    A B;
    A B C;
    A B C D;
}

/// The graph of `forward(module, x)`, where `x` has `input_shape` but any batch size (axis 0, whatever number stands
/// there): that dimension is the symbol `batch`.
///
/// The module is not changed. Parameters become constants named by their path (`layer1.0.conv1.weight`), and ops with
/// a weight are named by the module that holds it. Arithmetic on parameters alone is evaluated. Fake quantisation
/// becomes QuantizeLinear / DequantizeLinear pairs; quantised weights and biases become integer constants. Batch
/// norm stays a row of its own ([`passes::fold_batch_norm`] folds it).
///
/// # Errors
/// An op that the table lacks, naming it and the nearest parameter; a forward pass that panics, reads the input's
/// values, or depends on the batch size otherwise than in one dimension of a shape.
pub fn capture<M: Module, const D: usize, O: Outputs>(
    module: &M,
    input_name: &str,
    input_shape: [usize; D],
    output_names: &[impl AsRef<str>],
    forward: impl Fn(&M, Tensor<D>) -> O,
) -> Result<Graph, CaptureError> {
    let mut dims: Vec<Extent> = input_shape.iter().map(|&n| Extent::Fixed(n)).collect();
    if let Some(axis) = dims.first_mut() {
        *axis = Extent::Batch;
    }
    let spec = InputSpec { name: input_name, integers: false, dims };
    capture_inputs(module, &[spec], output_names, |module, inputs| forward(module, only(inputs).float()))
}

/// The graph of `forward(module, tokens)` for any number of sequences of any length: symbols `batch` and `tokens`. Its
/// inputs are i64 `[batch, tokens]`: `input_ids`, `attention_mask` (1 where a token is), and, `with_types`,
/// `token_type_ids`. Else as [`capture`].
pub fn capture_tokens<M: Module, O: Outputs>(
    module: &M,
    with_types: bool,
    output_names: &[impl AsRef<str>],
    forward: impl Fn(&M, Tokens) -> O,
) -> Result<Graph, CaptureError> {
    let names = &["input_ids", "attention_mask", "token_type_ids"][..if with_types { 3 } else { 2 }];
    let spec = |&name| InputSpec { name, integers: true, dims: vec![Extent::Batch, Extent::Length] };
    let specs: Vec<InputSpec<'_>> = names.iter().map(spec).collect();
    capture_inputs(module, &specs, output_names, |module, inputs| {
        let mut inputs = inputs.into_iter().map(Unknown::int::<2>);
        let ids = inputs.next().expect("as many inputs as specs");
        forward(
            module,
            Tokens { ids, mask: inputs.next().map(Tensor::<2, Int>::float), types: inputs.next() },
        )
    })
}

fn only(inputs: Vec<Unknown>) -> Unknown {
    inputs.into_iter().next().expect("as many inputs as specs")
}

fn capture_inputs<M: Module, O: Outputs>(
    module: &M,
    specs: &[InputSpec<'_>],
    output_names: &[impl AsRef<str>],
    forward: impl Fn(&M, Vec<Unknown>) -> O,
) -> Result<Graph, CaptureError> {
    let output_names: Vec<&str> = output_names.iter().map(AsRef::as_ref).collect();
    let input_names: Vec<&str> = specs.iter().map(|spec| spec.name).collect();
    let mut names: Vec<&str> = output_names.iter().chain(&input_names).copied().collect();
    names.sort_unstable();
    let twice = names.windows(2).find(|w| w[0] == w[1]).map(|w| w[0]);
    if let Some(name) = twice.or(names.iter().copied().find(|n| n.is_empty())) {
        return Err(CaptureError::Name(name.to_string()));
    }

    let trace = record::trace(module, specs, &forward)?;
    if trace.outputs.len() != output_names.len() {
        let why = format!(
            "the forward pass returns {} tensors, {} names were given",
            trace.outputs.len(),
            output_names.len()
        );
        return Err(CaptureError::Output { index: trace.outputs.len().min(output_names.len()), why });
    }
    let mut g = lower::lower(&trace, specs, short_type_name::<M>())?;
    passes::fold_const(&mut g)?;
    passes::drop_identity(&mut g)?;
    passes::drop_dead(&mut g)?;
    // Constants that only others were made of take no names away.
    let mut g = g.compact();
    name::name_all(&mut g, &input_names, &output_names);
    verify::verify(&g)?;
    Ok(g)
}

fn short_type_name<M>() -> &'static str {
    let full = std::any::type_name::<M>();
    let plain = full.split('<').next().unwrap_or(full);
    plain.rsplit("::").next().unwrap_or(plain)
}
