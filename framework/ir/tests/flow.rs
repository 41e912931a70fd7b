//! Graphs within graphs: what they compute, how they are written, what is refused.

use lacuna_ir::interp::{run, run_all};
use lacuna_ir::text::{parse, print_full};
use lacuna_ir::{Dim, Graph, Tensor, verify};

/// 2·x where the condition holds, and x + k where not; k is outside.
const CHOICE: &str = r#"graph choice
input %c: bool[]
input %x: f32[n,2]
input %k: f32[2]
body 0 double
  symbol "n"
  input %x: f32[n,2]
  input %k: f32[2]
  const %two: f32[] = {2.0}
  %y: f32[n,2] = Mul(%x, %two)
  output %y
end
body 1 shift
  symbol "n"
  input %x: f32[n,2]
  input %k: f32[2]
  %y: f32[n,2] = Add(%x, %k)
  output %y
end
%z: f32[n,2] = If(%c, %x, %k) then=0 else=1  # choice
output %z
"#;

/// Running products: the state is multiplied by x[turn] as long as it stays below the limit.
const TURNS: &str = r#"graph turns
input %trips: i64[]
input %x: f32[n]
const %one: f32[] = {1.0}
body 0 step
  symbol "n"
  input %turn: i64[]
  input %goes_on: bool[]
  input %state: f32[]
  input %x: f32[n]
  const %limit: f32[] = {100.0}
  %part: f32[] = Gather(%x, %turn) axis=0
  %next: f32[] = Mul(%state, %part)
  %below: bool[] = Less(%next, %limit)
  output %below
  output %next
  output %part
end
%last: f32[], %parts: f32[?"parts.0"] = Loop(%trips, _, %one, %x) body=0 states=1  # turns
output %last
output %parts
"#;

fn f(dims: &[usize], x: &[f32]) -> Tensor {
    Tensor::from_f32(dims, x.to_vec())
}

fn graph(text: &str) -> Graph {
    parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn text_reads_what_it_writes() {
    for text in [CHOICE, TURNS] {
        let g = graph(text);
        assert_eq!(print_full(&g), text);
        assert_eq!(print_full(&g.compact()), text);
    }
}

#[test]
fn a_choice_is_one_of_its_bodies() {
    let g = graph(CHOICE);
    let (x, k) = (f(&[1, 2], &[1.0, 2.0]), f(&[2], &[10.0, 20.0]));
    for (c, want) in [(1, [2.0, 4.0]), (0, [11.0, 22.0])] {
        let made = run(&g, &[Tensor::from_bool(&[], vec![c]), x.clone(), k.clone()]).unwrap();
        assert_eq!(made, [f(&[1, 2], &want)]);
    }
    assert!(run_all(&g, &[Tensor::from_bool(&[], vec![1]), x, k]).unwrap().iter().all(|(_, v)| v.is_some()));
}

#[test]
fn a_loop_ends_by_number_or_by_condition() {
    let g = graph(TURNS);
    let x = f(&[5], &[2.0, 3.0, 4.0, 5.0, 6.0]);
    for (trips, last, parts) in [
        (0, 1.0, &[][..]),
        (-3, 1.0, &[]),
        (2, 6.0, &[2.0, 3.0]),
        // 120 is not below the limit.
        (9, 120.0, &[2.0, 3.0, 4.0, 5.0]),
    ] {
        let made = run(&g, &[Tensor::from_i64(&[], vec![trips]), x.clone()]).unwrap();
        assert_eq!(made, [f(&[], &[last]), f(&[parts.len()], parts)], "{trips} turns");
    }
}

#[test]
fn shapes_of_results_are_what_bodies_say_of_the_operands() {
    // The state's first dimension changes, the second does not; parts have the symbols of what is captured.
    let g = graph(
        r#"input %x: f32[n,m]
const %four: i64[] = {4}
const %yes: bool[] = {1}
body 0 grow
  symbol "s"
  symbol "m"
  input %turn: i64[]
  input %goes_on: bool[]
  input %all: f32[s,m]
  input %x: f32[rows,m]
  %more: f32[(s+rows),m] = Concat(%all, %x) axis=0
  %wide: f32[rows,(2*m)] = Concat(%x, %x) axis=1
  output %goes_on
  output %more
  output %wide
end
%all: f32[?"all.0",m], %wide: f32[4,n,(2*m)] = Loop(%four, %yes, %x, %x) body=0 states=1
output %all
output %wide
"#,
    );
    let [all, wide] = [0, 1].map(|i| g.shape(g.outputs[i]).to_vec());
    assert!(g.symbols.is_open(all[0]) && all[1] == g.shape(g.inputs[0])[1]);
    assert_eq!((wide[0], wide[1]), (Dim::Fixed(4), g.shape(g.inputs[0])[0]));
    let made = run(&g, &[f(&[1, 2], &[1.0, 2.0])]).unwrap();
    assert_eq!((made[0].dims.as_slice(), made[1].dims.as_slice()), (&[5, 2][..], &[4, 1, 4][..]));
    // With numbers outside, the same body says numbers.
    let bound = lacuna_ir::bind::bind(&g, &[Some(3), Some(2)], &[]).unwrap();
    assert_eq!(bound.tail.len(), 1, "data decide the size of what grows");
}

#[test]
fn a_choice_without_an_else_must_hold() {
    let g = graph(
        r#"input %x: f32[n,1]
const %last: i64[1] = {1}
const %one: i64[1] = {1}
%shape: i64[2] = Shape(%x)
%rows: i64[1] = Gather(%shape, %one) axis=0
%is_one: bool[1] = Equal(%rows, %last)
body 0 squeezed
  symbol "n"
  input %x: f32[n,1]
  %y: f32[n] = Squeeze(%x) axes=[1]
  output %y
end
%y: f32[n] = If(%is_one, %x) then=0
output %y
"#,
    );
    assert_eq!(run(&g, &[f(&[2, 1], &[1.0, 2.0])]).unwrap(), [f(&[2], &[1.0, 2.0])]);
    let g = graph(
        "input %c: bool[]\nbody 0 a\nconst %y: f32[1] = {1.0}\noutput %y\nend\n%y: f32[1] = If(%c) then=0  # here\noutput %y\n",
    );
    assert!(run(&g, &[Tensor::from_bool(&[], vec![1])]).is_ok());
    let e = run(&g, &[Tensor::from_bool(&[], vec![0])]).unwrap_err().to_string();
    assert!(e.contains("'here'") && e.contains("condition does not hold"), "{e}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let cases = [
        (CHOICE.replace("input %c: bool[]", "input %c: i64[]"), "input 0 is i64, it must be bool"),
        (CHOICE.replace("If(%c, %x, %k)", "If(%c, %x)"), "takes 2 values, not 1"),
        (CHOICE.replace("If(%c, %x, %k)", "If(%c, %k, %k)"), "its body takes f32"),
        (CHOICE.replace("else=1", "else=2"), "body2 does not exist"),
        (CHOICE.replacen("  output %y\n", "  output %y\n  output %x\n", 1), "make 2 and 1 results"),
        (
            CHOICE
                .replace("Add(%x, %k)", "ReduceSum(%x) axes=[1]")
                .replace("%y: f32[n,2] = R", "%y: f32[n] = R"),
            "it must have one type",
        ),
        (CHOICE.replace("%z: f32[n,2]", "%z: f32[2,2]"), "not what is written"),
        (CHOICE.replacen("end\n", "", 1), "'1' must be 0"),
        (CHOICE.replace("body 1", "body 3"), "'3' must be 1"),
        (format!("{CHOICE}end\n"), "ends no body"),
        (format!("{CHOICE}body 2 open\n"), "no 'end'"),
        (TURNS.replace("states=1", "states=2"), "state 1 is"),
        (TURNS.replace("states=1", "states=4000000000"), "states"),
        (
            TURNS
                .replace("%next: f32[] = Mul(%state, %part)", "%next: f32[n] = Mul(%state, %x)")
                .replace("%below: bool[]", "%below: bool[n]"),
            "must be one bool",
        ),
        (TURNS.replace("  output %next\n", "  output %turn\n"), "must keep its type"),
        (TURNS.replace("input %turn: i64[]", "input %turn: f32[]"), "input 1 is f32"),
    ];
    for (text, want) in cases {
        let e = parse(&text).expect_err(want).to_string();
        assert!(e.contains(want), "{e}\nis not: {want}");
    }
    let mut deep = String::from("input %x: f32[1]\n");
    (0..20).for_each(|_| deep.push_str("body 0 b\n"));
    assert!(parse(&deep).unwrap_err().to_string().contains("deeper than 16"));
    // Damaged anywhere: refused or valid, never a panic.
    for text in [CHOICE, TURNS] {
        for (i, line) in text.lines().enumerate() {
            let without: Vec<&str> =
                text.lines().enumerate().filter(|(k, _)| *k != i).map(|(_, l)| l).collect();
            let twice = text.replacen(line, &format!("{line}\n{line}"), 1);
            for damaged in [without.join("\n"), twice] {
                if let Ok(g) = parse(&damaged) {
                    verify::verify(&g).unwrap();
                    print_full(&g);
                }
            }
        }
    }
}
