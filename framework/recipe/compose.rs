//! Two recipes, one after the other, as one staged recipe: what a checkpoint was made with and what is done to it next.

use crate::diagnostic::{Diagnostic, Pos};
use crate::modifier::Modifier;
use crate::modifier_table::{Absent, KeyRow, Type};
use crate::recipe::{METADATA, Recipe};
use crate::value::{float, is_null};
use crate::yaml::{Document, NodeId};
use crate::yaml_scalar::{show_float, show_text};
use std::fmt::Write as _;

/// The text of a staged recipe: the stages of `base`, then those of `additional`. Unless `keep_original_epochs`, the
/// second's epochs count from the end of the first, and what has no end in the first ends there.
///
/// A recipe without stages becomes one: `stage_0` and `stage_1`, or named after the other recipe's stages. Expressions
/// are evaluated, metadata is kept.
///
/// Errors: both recipes have a stage of the same name.
pub fn compose_staged(
    base: &Recipe,
    additional: &Recipe,
    keep_original_epochs: bool,
) -> Result<String, Diagnostic> {
    let names = |recipe: &Recipe| recipe.stages.iter().map(|stage| stage.name.clone()).collect::<Vec<_>>();
    let (mut first, mut second) = (names(base), names(additional));
    match (first.first().cloned(), second.first().cloned()) {
        (None, None) => (first, second) = (vec!["stage_0".to_owned()], vec!["stage_1".to_owned()]),
        (None, Some(after)) => first = vec![format!("pre_{after}")],
        (Some(_), None) => {
            let free = (first.len()..).map(|n| format!("stage_{n}")).find(|name| !first.contains(name));
            second.extend(free);
        }
        _ => {}
    }
    if let Some(name) = first.iter().find(|name| second.contains(name)) {
        let message = format!("both recipes have a stage `{name}`");
        return Err(Diagnostic::error(&additional.source, Pos::default(), message, "rename one of them"));
    }
    let end = f64::from(base.max_epochs());
    let mut out = String::from("version: 1.1.0\n");
    let (ends, moves) = if keep_original_epochs { (None, 0.0) } else { (Some(end), end) };
    write_stages(&mut out, base, &first, &Shift { open_end: ends, by: 0.0 });
    write_stages(&mut out, additional, &second, &Shift { open_end: None, by: moves });
    Ok(out)
}

/// What happens to a recipe's epochs.
struct Shift {
    /// The end of what has none.
    open_end: Option<f64>,
    by: f64,
}

impl Shift {
    /// An epoch of the recipe where it is now, as written where it stays.
    fn moved(&self, doc: &Document, node: NodeId, epoch: f64) -> String {
        if self.by == 0.0 { doc.show(node) } else { show_float(epoch + self.by) }
    }
}

fn write_stages(out: &mut String, recipe: &Recipe, names: &[String], shift: &Shift) {
    for (number, name) in names.iter().enumerate() {
        // Modifiers beside the stages belong to the first.
        let own = |m: &&Modifier| m.stage.unwrap_or(0) as usize == number;
        let _ = writeln!(out, "\n{}:", show_text(name));
        let metadata = recipe.stages.get(number).map_or(recipe.metadata, |stage| stage.metadata);
        if let Some(node) = metadata {
            let _ = writeln!(out, "  {METADATA}: {}", recipe.doc.show(node));
        }
        let mut groups: Vec<&str> = Vec::new();
        for modifier in recipe.modifiers.iter().filter(own) {
            if !groups.contains(&modifier.group.as_str()) {
                groups.push(&modifier.group);
            }
        }
        for group in groups {
            let _ = writeln!(out, "  {}:", show_text(group));
            for modifier in recipe.modifiers.iter().filter(own).filter(|m| m.group == group) {
                let _ = writeln!(out, "    - !{}", modifier.class());
                write_keys(out, recipe, modifier, shift);
            }
        }
    }
}

fn write_keys(out: &mut String, recipe: &Recipe, modifier: &Modifier, shift: &Shift) {
    let mut keys = 0;
    for key in modifier.row.keys.iter().chain(crate::modifier_table::COMMON_KEYS) {
        let given = modifier.args.iter().find(|arg| arg.key.name == key.name).map(|arg| arg.value);
        if let Some(value) = value_text(recipe, modifier, key, given, shift) {
            let _ = writeln!(out, "        {}: {value}", key.name);
            keys += 1;
        }
    }
    if keys == 0 {
        // A tag needs a map after it.
        let _ = writeln!(out, "        {{}}");
    }
}

/// The value to write for a key; `None` where the key is left out.
fn value_text(
    recipe: &Recipe,
    modifier: &Modifier,
    key: &KeyRow,
    given: Option<NodeId>,
    shift: &Shift,
) -> Option<String> {
    let doc = &recipe.doc;
    let epoch = |node| float(doc, node).unwrap_or(-1.0);
    if key.default == Absent::Dropped || key.ty == Type::Options {
        return None;
    }
    match (key.name, given) {
        ("start_epoch", given) if shift.by > 0.0 => {
            Some(show_float(given.map_or(-1.0, epoch).max(0.0) + shift.by))
        }
        ("end_epoch", given) => {
            let end = given.map_or(-1.0, epoch);
            let quantises = modifier.class().ends_with("QuantizationModifier");
            match (end, shift.open_end) {
                (-1.0, Some(end)) if !quantises => Some(show_float(end)),
                (-1.0, _) => None,
                (end, _) => given.map(|node| shift.moved(doc, node, end)),
            }
        }
        // Only the session style may leave these out.
        (_, None) => (key.default == Absent::Required).then(|| "-1.0".to_owned()),
        (_, Some(node)) if key.ty == Type::Epoch && !is_null(doc, node) && shift.by > 0.0 => {
            Some(show_float(epoch(node).max(0.0) + shift.by))
        }
        ("update_epochs", Some(node)) => Some(moved_list(recipe, node, shift)),
        ("lr_kwargs", Some(node)) => {
            let entries = doc.map(node).map(|(key, value)| {
                let milestones = doc.text(key) == Some("milestones");
                let value = if milestones { moved_list(recipe, value, shift) } else { doc.show(value) };
                format!("{}: {value}", doc.show(key))
            });
            Some(format!("{{{}}}", entries.collect::<Vec<_>>().join(", ")))
        }
        (_, Some(node)) => Some(doc.show(node)),
    }
}

/// A list of epochs in flow form.
fn moved_list(recipe: &Recipe, node: NodeId, shift: &Shift) -> String {
    let doc = &recipe.doc;
    let moved = |&item: &NodeId| match float(doc, item) {
        Some(epoch) => shift.moved(doc, item, epoch),
        None => doc.show(item),
    };
    format!("[{}]", doc.list(node).iter().map(moved).collect::<Vec<_>>().join(", "))
}
