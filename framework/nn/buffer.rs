//! State that a forward pass may change and that is saved with the weights but never trained: running statistics
//! of batch norm, ranges seen by observers.
//!
//! burn's `RunningState` holds an update back until it is next read and shares its value between clones; a
//! checkpoint must see the update at once, and a copy on another device must not move the original.

use burn::module::{
    Content, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param, ParamId,
};
use burn::tensor::{Device, Tensor};
use std::sync::Mutex;

#[derive(Debug)]
pub struct Buffer<const D: usize> {
    id: ParamId,
    value: Mutex<Tensor<D>>,
}

impl<const D: usize> Buffer<D> {
    pub fn new(value: Tensor<D>) -> Self {
        Buffer { id: ParamId::new(), value: Mutex::new(value.without_autodiff()) }
    }

    pub fn id(&self) -> ParamId {
        self.id
    }

    pub fn get(&self) -> Tensor<D> {
        self.lock().clone()
    }

    pub fn set(&self, value: Tensor<D>) {
        *self.lock() = value.without_autodiff();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tensor<D>> {
        self.value.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn with(&self, value: Tensor<D>) -> Self {
        Buffer { id: self.id, value: Mutex::new(value) }
    }
}

impl<const D: usize> Clone for Buffer<D> {
    fn clone(&self) -> Self {
        self.with(self.get())
    }
}

impl<const D: usize> Module for Buffer<D> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.visit_float(&Param::initialized(self.id, self.get()));
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let (_, value, _) = mapper.map_float(Param::initialized(self.id, self.get())).consume();
        self.with(value.set_require_grad(false))
    }

    fn to_device(self, device: &Device) -> Self {
        self.with(self.get().to_device(device))
    }

    fn fork(self, device: &Device) -> Self {
        self.to_device(device)
    }

    fn collect_devices(&self, mut devices: Vec<Device>) -> Vec<Device> {
        let device = self.get().device();
        if !devices.contains(&device) {
            devices.push(device);
        }
        devices
    }

    fn materialize(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn train(self) -> Self {
        self
    }
}

impl<const D: usize> std::fmt::Display for Buffer<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buffer")
    }
}

impl<const D: usize> ModuleDisplayDefault for Buffer<D> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&"Buffer".to_string()).optional()
    }
}

impl<const D: usize> ModuleDisplay for Buffer<D> {}
