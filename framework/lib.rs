//! Lacuna prunes and quantises neural networks while they train, and runs them fast on ordinary CPUs.
//!
//! # The tour
//!
//! Read the crates in the order in which data passes through them:
//!
//! | module | owns | begin at |
//! |---|---|---|
//! | [`recipe`] | what happens when: YAML to a flat table of events | [`recipe::parse`], [`recipe::compile`] |
//! | [`data`] | files to batches of plain numbers | [`data::ImageSet`], [`data::Batches`] |
//! | [`nn`] | layers that can be masked, quantised and captured | [`nn::layers`], [`nn::capture`] |
//! | [`models`] | the table of networks | [`models::MODELS`] |
//! | [`weights`] | published files of weights, read without running them | [`weights::WeightFile`] |
//! | [`train`] | the loop, masks, checkpoints, logs | [`train::fit`] |
//! | [`ir`] | the one graph: tables, op table, interpreter, passes | [`ir::Graph`], [`ir::OPS`] |
//! | [`onnx`] | that graph as a file, and back | [`onnx::load`], [`onnx::save`] |
//! | [`container`] | the same in a file of our own, whose zeros take no room | [`container::load`], [`container::save`] |
//! | [`engine`] | graph to plan to results, on the best kernels there are | [`engine::Session`] |
//! | [`pipelines`] | pictures to boxes around a session | [`pipelines::Detector`] |
//! | [`cli`] | the command `lacuna`, one verb per file | [`cli::VERBS`] |
//!
//! # Running a model
//!
//! ```
//! use lacuna::engine::{Options, Session};
//! use lacuna::ir::{Attr, DType, Dim, Graph, OpKind, Tensor};
//!
//! // A graph; `lacuna::onnx::load("model.onnx")?` gives one too.
//! let mut graph = Graph::new("relu");
//! let batch = graph.symbol("batch");
//! let x = graph.add_input("x", DType::F32, &[Dim::Symbol(batch), Dim::Fixed(3)]);
//! graph.outputs = graph.add_op(OpKind::Relu, Attr::None, "relu", &[x], &["y"])?;
//!
//! let mut session = Session::new(&graph, &Options::default())?;
//! let y = session.run(&[Tensor::from_f32(&[1, 3], vec![-1.0, 0.0, 2.0])])?;
//! assert_eq!(y[0].as_f32(), Some(&[0.0, 0.0, 2.0][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Training one
//!
//! `examples/train.rs` is the whole way: data, recipe, training, export, engine. [`cli::training`] holds the functions
//! that it shares with `lacuna train`.

#![forbid(unsafe_code)]

pub use lacuna_cli as cli;
pub use lacuna_container as container;
pub use lacuna_data as data;
pub use lacuna_engine as engine;
pub use lacuna_ir as ir;
pub use lacuna_models as models;
pub use lacuna_nn as nn;
pub use lacuna_onnx as onnx;
pub use lacuna_pipelines as pipelines;
pub use lacuna_recipe as recipe;
pub use lacuna_train as train;
pub use lacuna_weights as weights;
