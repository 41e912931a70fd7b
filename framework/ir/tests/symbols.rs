//! Symbolic dimensions: what must be equal is one symbol, what cannot be said is unknown, and both survive as text.

use lacuna_ir::symbols::Scope;
use lacuna_ir::{Dim, Element, Graph, SymbolId, Symbols, Tensor, interp, text};

fn graph(text: &str) -> Graph {
    text::parse(text).unwrap()
}

/// The two branches of a residual block of any height meet in one symbol.
#[test]
fn branches_of_any_height_meet_in_one_symbol() {
    let g = graph(
        "graph g
input %x: f32[n,1,h,w]
const %a: f32[1,1,3,3] = {1,1,1,1,1,1,1,1,1}
const %b: f32[1,1,1,1] = {1}
%c: f32[n,1,((h+1)/2),((w+1)/2)] = Conv(%x, %a) kernel=[3,3] stride=[2,2] pads=[1,1,1,1]
%d: f32[n,1,((h+1)/2),((w+1)/2)] = Conv(%c, %a) kernel=[3,3] pads=[1,1,1,1]
%e: f32[n,1,((h+1)/2),((w+1)/2)] = Conv(%x, %b) kernel=[1,1] stride=[2,2]
%f: f32[n,1,((h+1)/2),((w+1)/2)] = Add(%d, %e)
%p: f32[n,1,((h+3)/4),((w+3)/4)] = MaxPool(%f) kernel=[3,3] stride=[2,2] pads=[1,1,1,1]
%q: f32[n,(((h+3)/4)*((w+3)/4))] = Flatten(%p) axis=1
output %q",
    );
    let again = text::print_full(&g);
    assert_eq!(text::print_full(&graph(&again)), again);
    let x = Tensor::from_f32(&[2, 1, 5, 6], vec![1.0; 60]);
    assert_eq!(interp::run(&g, &[x]).unwrap()[0].dims, [2, 4]);
}

#[test]
fn reshapes_cancel_what_stands_on_both_sides() {
    let g = graph(
        "graph g
input %x: f32[b,t,64]
const %heads: i64[4] = {0,0,4,-1}
const %rows: i64[2] = {-1,64}
const %back: i64[3] = {0,-1,64}
%h: f32[b,t,4,16] = Reshape(%x, %heads)
%r: f32[(b*t),64] = Reshape(%h, %rows)
%y: f32[b,t,64] = Reshape(%h, %back)
output %r
output %y",
    );
    let x = Tensor::from_f32(&[3, 5, 64], vec![0.5; 960]);
    let dims: Vec<Vec<usize>> = interp::run(&g, &[x]).unwrap().into_iter().map(|t| t.dims).collect();
    assert_eq!(dims, [vec![15, 64], vec![3, 5, 64]]);
}

/// Positions of tokens, as exporters count them: as many as there are tokens.
#[test]
fn what_is_counted_up_to_a_length_is_as_long() {
    let g = graph(
        "graph g
input %x: i64[b,t]
const %table: f32[6,2] = {0.0,1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,10.0,11.0}
const %place: i64[] = {1}
const %zero: i64[] = {0}
const %one: i64[] = {1}
const %two: i64[] = {2}
%shape: i64[2] = Shape(%x)
%n: i64[] = Gather(%shape, %place) axis=0
%end: i64[] = Add(%n, %two)
%a: i64[t] = Range(%zero, %n, %one)
%b: i64[t] = Range(%two, %end, %one)
%y: f32[t,2] = Gather(%table, %a) axis=0
%z: f32[t,2] = Gather(%table, %b) axis=0
output %y
output %z",
    );
    let y = interp::run(&g, &[Tensor::from_i64(&[1, 3], vec![0; 3])]).unwrap();
    assert_eq!(y[0].as_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(y[1].as_f32().unwrap(), [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    assert!(interp::run(&g, &[Tensor::from_i64(&[1, 7], vec![0; 7])]).is_err(), "no row has that number");
}

/// A shape that the caller gives: its rank is known, its dimensions are not; where a line says more, that is kept.
#[test]
fn what_the_data_decide_is_a_symbol_of_its_own() {
    let source = "graph g
input %x: f32[n,6]
input %s: i64[2]
%y: f32[?\"y.0\",?\"y.1\"] = Reshape(%x, %s)
%z: f32[?\"y.0\",?\"y.1\"] = Relu(%y)
output %z
";
    let g = graph(source);
    assert_eq!(text::print_full(&g), source);
    let run =
        |s: Vec<i64>| interp::run(&g, &[Tensor::from_f32(&[2, 6], vec![1.0; 12]), Tensor::from_i64(&[2], s)]);
    assert_eq!(run(vec![3, -1]).unwrap()[0].dims, [3, 4]);
    assert!(run(vec![5, -1]).unwrap_err().to_string().contains("element counts differ"));
}

#[test]
fn arithmetic_is_in_normal_form() {
    let mut symbols = Symbols::default();
    let [h, w] = ["h", "w"].map(|n| Element::Symbol(symbols.free(n)));
    let s = Scope::new(&symbols);
    let n = Element::Number;
    assert_eq!(s.add(s.mul(h, n(3)), s.sub(n(4), h)), s.add(s.add(h, h), n(4)));
    assert_eq!(s.mul(s.add(h, w), s.sub(h, w)), s.sub(s.mul(h, h), s.mul(w, w)));
    assert_eq!(s.div(s.add(s.div(h, n(2)), n(3)), n(4)), s.div(s.add(h, n(6)), n(8)));
    assert_eq!(s.div(s.add(s.mul(h, n(4)), n(7)), n(2)), s.add(s.mul(h, n(2)), n(3)));
    assert_eq!(s.div(s.mul(s.mul(h, w), n(12)), s.mul(w, n(4))), s.mul(h, n(3)));
    assert_eq!(s.div(h, w), Element::Unknown);
    assert_eq!(s.div(h, n(0)), Element::Unknown);
    assert_eq!(s.mul(h, n(i64::MAX)), s.mul(n(i64::MAX), h));
    assert_eq!(s.mul(s.mul(h, n(i64::MAX)), n(2)), Element::Unknown);
}

/// What would grow without end becomes unknown instead.
#[test]
fn expressions_are_bounded() {
    let mut symbols = Symbols::default();
    let mut x = Element::Symbol(symbols.free("h"));
    let other = Element::Symbol(symbols.free("w"));
    for step in 0..10_000 {
        let scope = Scope::new(&symbols);
        x = scope.add(scope.mul(scope.div(x, Element::Number(3)), x), other);
        let new = scope.into_new();
        symbols.adopt(new);
        if x == Element::Unknown {
            assert!(step < 200, "{} symbols", symbols.len());
            return;
        }
    }
    panic!("never refused: {} symbols", symbols.len());
}

#[test]
fn symbols_are_worked_out_from_those_that_are_given() {
    let mut symbols = Symbols::default();
    let h = symbols.free("h");
    let scope = Scope::new(&symbols);
    let e = scope.div(scope.sub(Element::Symbol(h), Element::Number(3)), Element::Number(2));
    let new = scope.into_new();
    symbols.adopt(new);
    let Some(Dim::Symbol(last)) = e.dim() else { panic!("{e:?}") };
    let of = |h: u64| {
        let mut known = vec![None; symbols.len()];
        known[0] = Some(h);
        for s in symbols.ids() {
            known[s.0 as usize] = symbols.evaluate(s, &known);
        }
        known[last.0 as usize]
    };
    assert_eq!([of(9), of(4), of(3), of(2)], [Some(3), Some(0), Some(0), None]);
    assert_eq!(symbols.evaluate(SymbolId(0), &[None]), None);
}

#[test]
fn damaged_expressions_are_refused() {
    for (dim, why) in [
        ("(h", "expected ')'"),
        ("(h/2)", "expected ')'"),
        ("((h)/0)", "passes the limits"),
        ("(1-h)", "makes f32[h]"),
        ("(k+1)", "stands in no dimension above"),
        ("(99999999999999999999)", "no number that fits"),
        ("(?h)", "stands in no dimension above"),
        ("(0-4)", "is negative"),
    ] {
        let text = format!("graph g\ninput %x: f32[h]\n%y: f32[{dim}] = Relu(%x)\noutput %y");
        let error = text::parse(&text).unwrap_err().to_string();
        assert!(error.contains(why), "{dim}: {error}");
    }
    let deep = format!(
        "graph g\ninput %x: f32[h]\n%y: f32[{}h{}] = Relu(%x)\noutput %y",
        "(".repeat(5000),
        ")".repeat(5000)
    );
    assert!(text::parse(&deep).unwrap_err().to_string().contains("deeper"));
}
