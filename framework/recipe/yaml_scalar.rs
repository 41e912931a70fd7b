//! What a plain scalar means, YAML 1.1 as PyYAML reads it, and how a value is written so that it is read back.

#![deny(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use crate::yaml::Data;
use regex::Regex;
use std::sync::LazyLock;

// The implicit types of YAML 1.1 in the spelling of PyYAML's resolver: what it takes for a number, it is.
static FLOAT: LazyLock<Regex> = LazyLock::new(|| {
    let decimal = r"[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?";
    pattern(&format!(r"^(?:{decimal})$"))
});
static FLOAT_BASE_60: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*$"));
static INT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^[-+]?(?:0b[01_]+|0[0-7_]+|(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+|[1-9][0-9_]*(?::[0-5]?[0-9])+)$")
});

#[expect(clippy::unwrap_used, reason = "constant patterns, compiled by every test")]
fn pattern(text: &str) -> Regex {
    Regex::new(text).unwrap()
}

/// A plain scalar that is not text; `None` for text.
pub(crate) fn resolve_plain(text: &str) -> Option<Data> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Data::Null),
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Some(Data::Bool(true));
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Some(Data::Bool(false));
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Some(Data::Float(f64::INFINITY)),
        "-.inf" | "-.Inf" | "-.INF" => return Some(Data::Float(f64::NEG_INFINITY)),
        ".nan" | ".NaN" | ".NAN" => return Some(Data::Float(f64::NAN)),
        "<<" => return Some(Data::Merge),
        _ => {}
    }
    let digits = || text.replace('_', "");
    if FLOAT.is_match(text) {
        return digits().parse().ok().map(Data::Float);
    }
    if FLOAT_BASE_60.is_match(text) {
        return base_60(&digits()).map(Data::Float);
    }
    if INT.is_match(text) { integer(&digits()) } else { None }
}

/// An integer of YAML 1.1: binary, octal with a leading 0, hexadecimal, decimal, base 60 with colons.
/// One beyond 64 bits becomes the nearest float; the typed checks decide whether that is allowed.
fn integer(text: &str) -> Option<Data> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.contains(':') {
        let value = base_60(text)?;
        // 2^53: below it the float arithmetic of `base_60` was exact.
        return Some(if value.abs() < 9e15 { Data::Int(float_to_int(value)) } else { Data::Float(value) });
    }
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'b', ..] => (2, digits.get(2..)?),
        [b'0', b'x', ..] => (16, digits.get(2..)?),
        [b'0', _, ..] => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    // `0x_` and `0_` match PyYAML's pattern too; its int() takes an empty octal rest for 0 digits.
    if digits.is_empty() {
        return (radix == 8).then_some(Data::Int(0));
    }
    match i64::from_str_radix(digits, radix) {
        Ok(value) => Some(Data::Int(value.saturating_mul(sign))),
        Err(_) if radix == 10 => text.parse().ok().map(Data::Float),
        Err(_) => {
            let mut value = 0.0;
            for digit in digits.chars().filter_map(|c| c.to_digit(radix)) {
                value = value * f64::from(radix) + f64::from(digit);
            }
            Some(Data::Float(if sign < 0 { -value } else { value }))
        }
    }
}

/// `a:b:c` as a·3600 + b·60 + c; the last part may have a fraction.
fn base_60(text: &str) -> Option<f64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut value = 0.0;
    for part in digits.split(':') {
        value = value * 60.0 + part.parse::<f64>().ok()?;
    }
    Some(sign * value)
}

/// A text for a message: cut after `BRIEF_CHARS` characters.
pub(crate) fn cut(text: &str) -> String {
    const BRIEF_CHARS: usize = 80;
    match text.char_indices().nth(BRIEF_CHARS) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

pub(crate) fn show_float(value: f64) -> String {
    if value.is_nan() {
        ".nan".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { ".inf" } else { "-.inf" }.to_owned()
    } else if value != 0.0 && !(1e-5..1e16).contains(&value.abs()) {
        // YAML 1.1 wants a point and a signed exponent.
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let point = if mantissa.contains('.') { "" } else { ".0" };
        let sign = if exponent.starts_with('-') { "" } else { "+" };
        format!("{mantissa}{point}e{sign}{exponent}")
    } else {
        format!("{value:?}")
    }
}

pub(crate) fn show_text(text: &str) -> String {
    let plain = !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/*()+$^\\".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && resolve_plain(text).is_none();
    if plain { text.to_owned() } else { quoted(text) }
}

/// A text in double quotes, with YAML's escapes for what cannot stand in it as it is.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' | ..'\u{a0}' => {
                out.push_str(&format!("\\u{:04X}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[expect(clippy::as_conversions, reason = "nearest float is what a float field means")]
pub(crate) fn int_to_float(value: i64) -> f64 {
    value as f64
}

#[expect(clippy::as_conversions, reason = "called below 2^53 only")]
fn float_to_int(value: f64) -> i64 {
    value as i64
}
