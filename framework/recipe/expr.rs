//! The arithmetic inside `eval(...)`: a Pratt parser that computes as it reads. Pure and bounded: no calls but
//! the six functions below, no text, no loops, at most `EXPR_BYTES_MAX` bytes and `EXPR_NODES_MAX` operations.
//!
//! Numbers behave as in Python: `/` gives a float, `//` and `%` round towards minus infinity, `**` binds tighter
//! than a minus on its left, `round` is half-to-even. Integers have 64 bits; overflow is an error.

#![deny(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

/// Longest expression, in bytes.
pub const EXPR_BYTES_MAX: usize = 1024;
/// Most operands and operators in one expression.
pub const EXPR_NODES_MAX: u32 = 256;
/// Deepest nesting of parentheses, calls and signs.
const DEPTH_MAX: u32 = 64;

const FUNCTIONS: [&str; 6] = ["abs", "float", "int", "max", "min", "round"];

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    pub fn as_f64(self) -> f64 {
        match self {
            Number::Int(value) => int_to_float(value),
            Number::Float(value) => value,
        }
    }
}

/// Computes an expression; `variable` gives the value of a name. Errors are whole sentences without a place.
pub fn evaluate(
    text: &str,
    variable: &mut dyn FnMut(&str) -> Result<Number, String>,
) -> Result<Number, String> {
    if text.len() > EXPR_BYTES_MAX {
        return Err(format!("the expression is longer than {EXPR_BYTES_MAX} bytes"));
    }
    let tokens = tokenize(text)?;
    let mut parser = Parser { tokens: &tokens, next: 0, nodes: 0, depth: 0, variable };
    let value = parser.expression(0)?;
    match parser.peek() {
        None => Ok(value),
        Some(token) => Err(format!("unexpected {} after a complete expression", token.show())),
    }
}

#[derive(Clone, PartialEq, Debug)]
enum Token {
    Number(Number),
    Name(String),
    Operator(&'static str),
}

impl Token {
    fn show(&self) -> String {
        match self {
            Token::Number(number) => format!("number {}", number.as_f64()),
            Token::Name(name) => format!("`{name}`"),
            Token::Operator(operator) => format!("`{operator}`"),
        }
    }
}

fn tokenize(text: &str) -> Result<Vec<Token>, String> {
    const OPERATORS: [&str; 10] = ["**", "//", "+", "-", "*", "/", "%", "(", ")", ","];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_digit() || first == '.' {
            let length = number_length(rest);
            tokens.push(Token::Number(number(rest.get(..length).unwrap_or_default())?));
            length
        } else if first.is_alphabetic() || first == '_' {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(Token::Name(rest.get(..length).unwrap_or_default().to_owned()));
            length
        } else if let Some(operator) = OPERATORS.iter().find(|operator| rest.starts_with(**operator)) {
            tokens.push(Token::Operator(operator));
            operator.len()
        } else {
            return Err(format!("unexpected character `{first}`; known are + - * / // % ** ( ) and names"));
        };
        rest = rest.get(length..).unwrap_or_default().trim_start();
    }
    Ok(tokens)
}

/// Bytes of the number that `text` begins with: digits and points, and an exponent with its sign.
fn number_length(text: &str) -> usize {
    let mut previous = ' ';
    for (at, c) in text.char_indices() {
        let exponent_sign = (c == '+' || c == '-') && (previous == 'e' || previous == 'E');
        if !(c.is_ascii_alphanumeric() || c == '.' || c == '_' || exponent_sign) {
            return at;
        }
        previous = c;
    }
    text.len()
}

fn number(text: &str) -> Result<Number, String> {
    if let Ok(value) = text.parse::<i64>() {
        return Ok(Number::Int(value));
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && !text.contains('_') => Ok(Number::Float(value)),
        _ => Err(format!("`{text}` is not a number")),
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    next: usize,
    nodes: u32,
    depth: u32,
    variable: &'a mut dyn FnMut(&str) -> Result<Number, String>,
}

impl Parser<'_> {
    /// Reads operators that bind at least as tightly as `power`.
    fn expression(&mut self, power: u8) -> Result<Number, String> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > DEPTH_MAX {
            return Err(format!("the expression is nested deeper than {DEPTH_MAX} levels"));
        }
        let mut left = self.operand()?;
        while let Some(Token::Operator(operator)) = self.peek() {
            // `**` groups to the right, the others to the left.
            let (binds, right) = match *operator {
                "+" | "-" => (1, 2),
                "*" | "/" | "//" | "%" => (3, 4),
                "**" => (8, 7),
                _ => break,
            };
            if binds < power {
                break;
            }
            let operator = *operator;
            self.advance()?;
            let value = self.expression(right)?;
            left = finite(apply(operator, left, value)?)?;
        }
        self.depth = self.depth.saturating_sub(1);
        Ok(left)
    }

    fn operand(&mut self) -> Result<Number, String> {
        let Some(token) = self.peek().cloned() else {
            return Err("the expression ends where a value is expected".to_owned());
        };
        self.advance()?;
        match token {
            Token::Number(number) => Ok(number),
            Token::Name(name) if self.peek() == Some(&Token::Operator("(")) => self.call(&name),
            Token::Name(name) => (self.variable)(&name),
            Token::Operator("(") => {
                let value = self.expression(0)?;
                self.expect(")")?;
                Ok(value)
            }
            // A sign binds tighter than `*` and looser than `**`: -2 ** 2 is -4.
            Token::Operator("-") => match self.expression(5)? {
                Number::Int(value) => value.checked_neg().map(Number::Int).ok_or_else(overflow),
                Number::Float(value) => Ok(Number::Float(-value)),
            },
            Token::Operator("+") => self.expression(5),
            Token::Operator(operator) => Err(format!("`{operator}` stands where a value is expected")),
        }
    }

    fn call(&mut self, name: &str) -> Result<Number, String> {
        if !FUNCTIONS.contains(&name) {
            return Err(format!("`{name}` is no function; known are {}", FUNCTIONS.join(", ")));
        }
        self.expect("(")?;
        let mut arguments = Vec::new();
        while self.peek() != Some(&Token::Operator(")")) {
            arguments.push(self.expression(0)?);
            if self.peek() != Some(&Token::Operator(")")) {
                self.expect(",")?;
            }
        }
        self.expect(")")?;
        call(name, &arguments)
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    fn advance(&mut self) -> Result<(), String> {
        self.next = self.next.saturating_add(1);
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > EXPR_NODES_MAX {
            return Err(format!("the expression has more than {EXPR_NODES_MAX} parts"));
        }
        Ok(())
    }

    fn expect(&mut self, operator: &'static str) -> Result<(), String> {
        match self.peek() {
            Some(Token::Operator(found)) if *found == operator => self.advance(),
            Some(token) => Err(format!("`{operator}` expected, found {}", token.show())),
            None => Err(format!("`{operator}` expected at the end of the expression")),
        }
    }
}

fn apply(operator: &str, a: Number, b: Number) -> Result<Number, String> {
    if let (Number::Int(a), Number::Int(b)) = (a, b)
        && (operator != "/" && (operator != "**" || b >= 0))
    {
        return apply_int(operator, a, b).map(Number::Int);
    }
    let (a, b) = (a.as_f64(), b.as_f64());
    let zero = |operator| format!("`{operator}` by zero");
    let value = match operator {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" | "//" | "%" if b == 0.0 => return Err(zero(operator)),
        "/" => a / b,
        "//" => (a / b).floor(),
        "%" => {
            let rest = a % b;
            if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
        }
        _ if a == 0.0 && b < 0.0 => return Err("zero cannot be raised to a negative power".to_owned()),
        _ => a.powf(b),
    };
    Ok(Number::Float(value))
}

fn apply_int(operator: &str, a: i64, b: i64) -> Result<i64, String> {
    let value = match operator {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "//" | "%" if b == 0 => return Err(format!("`{operator}` by zero")),
        "//" => {
            let rest = a.checked_rem(b).ok_or_else(overflow)?;
            let inexact = rest != 0 && (rest < 0) != (b < 0);
            a.checked_div(b).and_then(|quotient| quotient.checked_sub(i64::from(inexact)))
        }
        "%" => {
            let rest = a.checked_rem(b).ok_or_else(overflow)?;
            if rest != 0 && (rest < 0) != (b < 0) { rest.checked_add(b) } else { Some(rest) }
        }
        _ => u32::try_from(b).ok().and_then(|power| a.checked_pow(power)),
    };
    value.ok_or_else(overflow)
}

fn call(name: &str, arguments: &[Number]) -> Result<Number, String> {
    match (name, arguments) {
        ("abs", [Number::Int(value)]) => value.checked_abs().map(Number::Int).ok_or_else(overflow),
        ("abs", [Number::Float(value)]) => Ok(Number::Float(value.abs())),
        ("float", [value]) => Ok(Number::Float(value.as_f64())),
        ("int" | "round", [Number::Int(value)]) => Ok(Number::Int(*value)),
        ("int", [Number::Float(value)]) => to_int(value.trunc()),
        ("round", [Number::Float(value)]) => to_int(value.round_ties_even()),
        ("round", [value, Number::Int(digits)]) => {
            let digits = usize::try_from(*digits).ok().filter(|&digits| digits <= 17);
            let Some(digits) = digits else { return Err("`round` takes 0 to 17 digits".to_owned()) };
            // Formatting rounds the exact binary value, as Python does.
            let text = format!("{:.digits$}", value.as_f64());
            text.parse().map(Number::Float).map_err(|_| overflow())
        }
        ("max" | "min", [first, rest @ ..]) => Ok(rest.iter().fold(*first, |best, &value| {
            let better =
                if name == "max" { value.as_f64() > best.as_f64() } else { value.as_f64() < best.as_f64() };
            if better { value } else { best }
        })),
        _ => Err(format!("`{name}` does not take {} arguments", arguments.len())),
    }
}

fn to_int(value: f64) -> Result<Number, String> {
    // 2^63, the first float that does not fit.
    if value.abs() < 9_223_372_036_854_775_808.0 {
        Ok(Number::Int(float_to_int(value)))
    } else {
        Err(overflow())
    }
}

fn finite(value: Number) -> Result<Number, String> {
    if value.as_f64().is_finite() { Ok(value) } else { Err("the result is not a finite number".to_owned()) }
}

fn overflow() -> String {
    "the result does not fit 64 bits".to_owned()
}

#[expect(clippy::as_conversions, reason = "nearest float, as in Python")]
fn int_to_float(value: i64) -> f64 {
    value as f64
}

#[expect(clippy::as_conversions, reason = "checked against 2^63 by the caller")]
fn float_to_int(value: f64) -> i64 {
    value as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<Number, String> {
        evaluate(text, &mut |name| match name {
            "n" => Ok(Number::Int(10)),
            "x" => Ok(Number::Float(0.5)),
            _ => Err(format!("no `{name}`")),
        })
    }

    /// Expected values are what CPython prints for the same text with n = 10, x = 0.5.
    #[test]
    fn agrees_with_python() {
        use Number::{Float, Int};
        let cases = [
            ("1 + 2 * 3", Int(7)),
            ("(1 + 2) * 3", Int(9)),
            ("7 // 2", Int(3)),
            ("-7 // 2", Int(-4)),
            ("7 // -2", Int(-4)),
            ("-7 % 3", Int(2)),
            ("7 % -3", Int(-2)),
            ("-7.5 % 2", Float(0.5)),
            ("7.5 // -2", Float(-4.0)),
            ("4 / 2", Float(2.0)),
            ("-2 ** 2", Int(-4)),
            ("2 ** 3 ** 2", Int(512)),
            ("2 ** -1", Float(0.5)),
            ("2 ** -1 * 4", Float(2.0)),
            ("-3 - -2", Int(-1)),
            ("+n - 1 - 1", Int(8)),
            ("n * x", Float(5.0)),
            ("round(2.5)", Int(2)),
            ("round(-3.5)", Int(-4)),
            ("round(2.675, 2)", Float(2.67)),
            ("int(-3.9)", Int(-3)),
            ("abs(-4)", Int(4)),
            ("min(3, x, 2)", Float(0.5)),
            ("max(1, 2, n)", Int(10)),
            ("float(3)", Float(3.0)),
            ("8e-5 * 2", Float(0.00016)),
            ("1 / 3 * 3 - 1", Float(0.0)),
        ];
        for (text, expected) in cases {
            assert_eq!(run(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_has_no_value() {
        let cases = [
            ("1 / 0", "by zero"),
            ("1 // 0", "by zero"),
            ("1.0 % 0", "by zero"),
            ("0 ** -1", "zero cannot"),
            ("10 ** 10 ** 10", "64 bits"),
            ("10.0 ** 400", "finite"),
            ("(-8) ** 0.5", "finite"),
            ("9223372036854775807 + 1", "64 bits"),
            ("int(1e300)", "64 bits"),
            ("1 +", "ends where"),
            ("1 2", "unexpected number"),
            ("(1", "`)` expected"),
            ("open(1)", "no function"),
            ("n.real", "`.real` is not a number"),
            ("'a'", "unexpected character"),
            ("1e999", "not a number"),
            ("0x10", "not a number"),
            ("", "ends where"),
            ("min()", "0 arguments"),
            ("y", "no `y`"),
        ];
        for (text, expected) in cases {
            let error = run(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_beyond() {
        let nested = |n: usize| format!("{}1{}", "(".repeat(n), ")".repeat(n));
        assert!(run(&nested(63)).is_ok());
        assert!(run(&nested(64)).expect_err("too deep").contains("deeper"));
        let sum = |n: usize| vec!["1"; n].join("+");
        assert_eq!(run(&sum(128)), Ok(Number::Int(128)));
        assert!(run(&sum(129)).expect_err("too many").contains("parts"));
        assert!(run(&" ".repeat(1025)).expect_err("too long").contains("longer"));
    }
}
