//! The recipe language: reading it, checking it, and compiling it to a flat table of events before training.
//!
//! A recipe is the classic SparseML YAML: variables, `eval(...)`, and lists of `!NameModifier` entries over fractional
//! epochs. This crate knows names and numbers, never tensors, and nothing in a recipe can run code.
//!
//! ```text
//! text ─ yaml ─► Document ─ recipe ─► Recipe (modifiers) ─ compile ─► Schedule (events by step)
//! ```
//!
//! Start at [`parse`] or [`Recipe::load`], then [`compile`].

#![forbid(unsafe_code)]

mod compose;
mod diagnostic;
mod diff;
mod expand;
mod expr;
mod kind;
mod language_model_table;
mod loss;
mod modifier;
mod modifier_pruning;
mod modifier_table;
mod params;
mod picture;
mod plan;
mod plan_pruning;
mod plan_quant;
mod quant_reader;
mod recipe;
mod schedule;
mod schema;
mod template;
mod value;
mod values;
mod yaml;
mod yaml_scalar;

pub use compose::compose_staged;
pub use diagnostic::{Diagnostic, Pos, Severity, render};
pub use diff::{Difference, KeyDifference, diff, diff_text};
pub use expr::{EXPR_BYTES_MAX, EXPR_NODES_MAX, Number, evaluate};
pub use kind::{
    Acdc, FisherRule, Inter, Kind, LayerQuant, LrClass, LrFunction, MaskStructure, Pruning, PruningGroup,
    QuantArgs, Quantization, RigL, Scope, ScoreRule, SparsityStrategy, TopKast,
};
pub use language_model_table::LANGUAGE_MODEL_MODIFIERS;
pub use loss::{Loss, LossRule, LossTerm, Pair, Penalty, Side, TermKind};
pub use modifier::{Arg, Modifier};
pub use modifier_table::{
    Absent, COMMON_KEYS, EPOCH_MAX, KeyRow, MODIFIERS, ModifierRow, Status, Type, rows,
};
pub use params::{Expression, Pattern, Rule, Selector};
pub use picture::{escape_html, picture};
pub use plan::{Action, EVENTS_MAX, Event, Fisher, ParamRow, PoolRange, Score, Watch, WatchKind, compile};
pub use plan_quant::{LayerRow, LayerScheme, QuantScheme};
pub use recipe::{Recipe, Stage, parse, parse_overrides, parse_with};
pub use schedule::{Schedule, ScheduleRow};
pub use schema::json_schema;
pub use template::{PRUNERS, Pruner, RATES, Rate, TARGETS, TEMPLATES, Target, Template};
pub use values::{ParamValue, SetParam};
pub use yaml::{Data, Document, NODES_MAX, NodeId, RECIPE_BYTES_MAX, YAML_DEPTH_MAX};
