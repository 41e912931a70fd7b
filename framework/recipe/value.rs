//! Nodes of a recipe as Rust values, as generously as SparseML reads them: numbers written as text,
//! 0 and 1 for booleans, `null` in quotes.

use crate::kind::MaskStructure;
use crate::yaml::{Data, Document, NodeId};

pub(crate) const MASK_EXPECTED: &str =
    "unstructured, block4, filter, channel, tensorrt, `N:M` in quotes, or two whole numbers such as [1, 4]";

pub(crate) fn mask(doc: &Document, node: NodeId) -> Option<MaskStructure> {
    if let [rows, columns] = *doc.list(node) {
        let side = |node| int(doc, node).and_then(|n| i32::try_from(n).ok()).filter(|&n| n == -1 || n > 0);
        return Some(MaskStructure::Block { rows: side(rows)?, columns: side(columns)? });
    }
    Some(match doc.text(node)? {
        "unstructured" => MaskStructure::Unstructured,
        "block4" => MaskStructure::Block4,
        "filter" => MaskStructure::Filter,
        "channel" => MaskStructure::Channel,
        "tensorrt" => MaskStructure::NOfM { keep: 2, of: 4 },
        text => {
            let (keep, of) = text.split_once(':')?;
            let (keep, of) = (keep.parse().ok()?, of.parse().ok()?);
            if keep == 0 || keep > of {
                return None;
            }
            MaskStructure::NOfM { keep, of }
        }
    })
}

/// PyYAML leaves `8e-5` a text and SparseML calls float() on it; so do we. NaN is never a number here.
pub(crate) fn float(doc: &Document, node: NodeId) -> Option<f64> {
    match doc.data(node) {
        Data::Int(value) => Some(value as f64),
        Data::Float(value) => Some(value).filter(|value| !value.is_nan()),
        Data::Text(_) => doc.text(node).and_then(numeric_text),
        _ => None,
    }
}

/// A text such as `8e-5` as the number that it spells; not `inf`, `nan` or words.
pub(crate) fn numeric_text(text: &str) -> Option<f64> {
    let digits = text.trim().trim_start_matches(['-', '+']);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    text.trim().parse().ok().filter(|value: &f64| value.is_finite())
}

pub(crate) fn int(doc: &Document, node: NodeId) -> Option<i64> {
    match doc.data(node) {
        Data::Int(value) => Some(value),
        // Beyond 2^53 a float does not name one integer.
        _ => float(doc, node).filter(|n| n.fract() == 0.0 && n.abs() < 9e15).map(|n| n as i64),
    }
}

pub(crate) fn boolean(doc: &Document, node: NodeId) -> Option<bool> {
    match doc.data(node) {
        Data::Bool(value) => Some(value),
        Data::Int(0) => Some(false),
        Data::Int(1) => Some(true),
        Data::Float(value) if value == 0.0 || value == 1.0 => Some(value == 1.0),
        Data::Text(_) => match doc.text(node)?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some(true),
            "false" | "no" | "off" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// SparseML takes the texts `null` and `None` for no value too.
pub(crate) fn is_null(doc: &Document, node: NodeId) -> bool {
    doc.data(node) == Data::Null || matches!(doc.text(node), Some("null" | "None" | "none"))
}

/// A scalar, or a list of scalars (a module may be called `0`).
pub(crate) fn is_names(doc: &Document, node: NodeId) -> bool {
    let scalar = |node| matches!(doc.data(node), Data::Text(_) | Data::Int(_));
    scalar(node)
        || (matches!(doc.data(node), Data::List(_)) && doc.list(node).iter().all(|&item| scalar(item)))
}
