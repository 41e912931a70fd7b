//! The parameters of a module as a table: one row per float tensor in the order in which burn visits them.
//!
//! Masks, optimiser state and recipes refer to rows; nothing here knows what a layer is beyond its name and the
//! name of its struct.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Gradients, Tensor, TensorData};

/// What a tensor is for, told from the struct that holds it and its field name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weight of a convolution or a linear layer: what recipes call prunable.
    Weight,
    Bias,
    /// Table of an embedding.
    Embedding,
    /// Scale or shift of a normalisation.
    Norm,
    /// Not trained: running statistics, observed ranges, quantisation schemes, layers left out, thresholds.
    Buffer,
}

/// Fields that hold a buffer. burn hides on a device without autodiff whether a tensor is trained, so names say it.
const BUFFERS: [&str; 7] = ["running_mean", "running_var", "range", "step", "scheme", "removed", "threshold"];

/// Rows that files of weights may lack: how layers are quantised, whether they run, and what their ReLUs cut off, which only
/// some recipes change.
pub fn is_optional(name: &str) -> bool {
    let field = name.rsplit_once('.').map_or(name, |(_, field)| field);
    matches!(field, "scheme" | "removed" | "threshold") || name.contains(".output_quantizer.")
}

/// Row `i` of every column describes the `i`-th float tensor of the module.
#[derive(Clone, Debug, Default)]
pub struct ParamTable {
    pub name: Vec<String>,
    pub shape: Vec<Vec<usize>>,
    pub role: Vec<Role>,
    /// Type of the layer that holds the tensor, as PyTorch names it: `Conv2d`, `Linear`.
    pub layer: Vec<String>,
    pub id: Vec<ParamId>,
}

impl ParamTable {
    pub fn of<M: Module>(module: &M) -> ParamTable {
        let mut collect = Collect { path: Vec::new(), structs: Vec::new(), table: ParamTable::default() };
        module.visit(&mut collect);
        collect.table
    }

    pub fn len(&self) -> usize {
        self.name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.name.is_empty()
    }

    pub fn elements(&self, row: usize) -> usize {
        self.shape[row].iter().product()
    }

    pub fn row(&self, name: &str) -> Option<usize> {
        self.name.iter().position(|n| n == name)
    }

    /// Trained elements in all.
    pub fn trained_elements(&self) -> usize {
        (0..self.len()).filter(|&i| self.role[i] != Role::Buffer).map(|i| self.elements(i)).sum()
    }
}

struct Collect {
    path: Vec<String>,
    structs: Vec<String>,
    table: ParamTable,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name.to_string());
        self.structs.push(container.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
        self.structs.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let leaf = self.path.last().map_or("", String::as_str);
        // The struct that holds the tensor: one further out may hold a convolution and its norm.
        let normalises = self.structs.last().is_some_and(|s| s.ends_with("Norm"));
        let role = match leaf {
            _ if BUFFERS.contains(&leaf) => Role::Buffer,
            _ if normalises => Role::Norm,
            _ if self.structs.last().is_some_and(|s| s.ends_with("Embedding")) => Role::Embedding,
            "bias" => Role::Bias,
            _ => Role::Weight,
        };
        self.table.name.push(self.path.join("."));
        self.table.shape.push(param.val().dims().to_vec());
        self.table.role.push(role);
        let layer = self.structs.last().map_or("", String::as_str);
        self.table.layer.push(layer.strip_prefix("Struct:").unwrap_or(layer).to_owned());
        self.table.id.push(param.id);
    }
}

/// Reads every tensor of the module, in table order.
pub fn for_each<M: Module>(module: &M, f: impl FnMut(usize, &[f32])) {
    struct Read<F> {
        row: usize,
        f: F,
    }
    impl<F: FnMut(usize, &[f32])> ModuleVisitor for Read<F> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().without_autodiff().into_data();
            (self.f)(self.row, data.as_slice().expect("parameters are f32"));
            self.row += 1;
        }
    }
    module.visit(&mut Read { row: 0, f });
}

/// Rewrites every tensor of the module, in table order: `f(row, values)` changes the values in place.
pub fn update_each<M: Module>(module: M, f: impl FnMut(usize, &mut Vec<f32>)) -> M {
    struct Update<F> {
        row: usize,
        f: F,
    }
    impl<F: FnMut(usize, &mut Vec<f32>)> ModuleMapper for Update<F> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (row, f) = (self.row, &mut self.f);
            self.row += 1;
            param.map(|t| {
                let (device, dims, trained) = (t.device(), t.dims(), t.is_require_grad());
                let mut values: Vec<f32> =
                    t.without_autodiff().into_data().try_into_vec().expect("parameters are f32");
                f(row, &mut values);
                let t = Tensor::from_data(TensorData::new(values, dims), &device);
                if trained { t.require_grad() } else { t }
            })
        }
    }
    module.map(&mut Update { row: 0, f })
}

/// Replaces tensors by smaller or larger ones, in table order: `f(row, values)` gives new values and their shape, or `None`
/// where a tensor stays.
///
/// # Panics
/// If a shape has another rank, or other elements, than its values.
pub fn resize_each<M: Module>(
    module: M,
    f: impl FnMut(usize, &[f32]) -> Option<(Vec<f32>, Vec<usize>)>,
) -> M {
    struct Resize<F> {
        row: usize,
        f: F,
    }
    impl<F: FnMut(usize, &[f32]) -> Option<(Vec<f32>, Vec<usize>)>> ModuleMapper for Resize<F> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let row = self.row;
            self.row += 1;
            let data = param.val().without_autodiff().into_data();
            let Some((values, shape)) = (self.f)(row, data.as_slice().expect("parameters are f32")) else {
                return param;
            };
            param.map(|t| {
                let (device, trained) = (t.device(), t.is_require_grad());
                let t = Tensor::from_data(TensorData::new(values, shape), &device);
                if trained { t.require_grad() } else { t }
            })
        }
    }
    module.map(&mut Resize { row: 0, f })
}

/// Reads the gradients of the tensors that have one, in table order: `f(row, gradient)`.
pub fn for_each_gradient<M: Module>(module: &M, gradients: &Gradients, f: impl FnMut(usize, &[f32])) {
    struct Read<'a, F> {
        row: usize,
        gradients: &'a Gradients,
        f: F,
    }
    impl<F: FnMut(usize, &[f32])> ModuleVisitor for Read<'_, F> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.gradients) {
                (self.f)(self.row, gradient.into_data().as_slice().expect("gradients are f32"));
            }
            self.row += 1;
        }
    }
    module.visit(&mut Read { row: 0, gradients, f });
}

/// A tensor that a step changes, and the gradient it changes by. Both have [`ParamTable::elements`] elements.
pub struct Updated<'a> {
    pub row: usize,
    pub values: &'a mut [f32],
    pub gradient: &'a mut [f32],
}

/// Rewrites the tensors that have a gradient, all at once: `f` is given them in table order and changes the values in
/// place. Values and gradients are moved out of the module and back, not copied, where nobody else holds them.
pub fn update_with_gradients<M: Module>(
    module: M,
    gradients: Gradients,
    f: impl FnOnce(&mut [Updated<'_>]),
) -> M {
    let mut take = Take { row: 0, gradients, taken: Vec::new() };
    let module = module.map(&mut take);
    let mut updates: Vec<Updated<'_>> = Vec::with_capacity(take.taken.len());
    updates.extend(take.taken.iter_mut().map(|t| Updated {
        row: t.row,
        values: t.values.as_mut_slice().expect("parameters are f32"),
        gradient: t.gradient.as_mut_slice().expect("gradients are f32"),
    }));
    f(&mut updates);
    drop(updates);
    module.map(&mut PutBack { row: 0, taken: take.taken.into_iter().peekable() })
}

struct Taken {
    row: usize,
    values: TensorData,
    gradient: TensorData,
}

/// Moves values and gradients out of a module; one element stays behind, to say on which device the tensor was.
struct Take {
    row: usize,
    gradients: Gradients,
    taken: Vec<Taken>,
}

impl ModuleMapper for Take {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let row = self.row;
        self.row += 1;
        let Some(gradient) = param.val().grad_remove(&mut self.gradients) else { return param };
        param.map(|t| {
            let device = t.device();
            let (values, gradient) = (t.without_autodiff().into_data(), gradient.into_data());
            self.taken.push(Taken { row, values, gradient });
            Tensor::zeros([1; D], &device)
        })
    }
}

struct PutBack {
    row: usize,
    taken: std::iter::Peekable<std::vec::IntoIter<Taken>>,
}

impl ModuleMapper for PutBack {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let row = self.row;
        self.row += 1;
        let Some(taken) = self.taken.next_if(|t| t.row == row) else { return param };
        param.map(|t| Tensor::from_data(taken.values, &t.device()).require_grad())
    }
}
