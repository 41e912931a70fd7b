//! Cases for ops that run other graphs.

use super::Case;
use lacuna_ir::{Tensor, text};

const CHOICE: &str = r#"graph choice
input %c: bool[]
input %x: f32[batch,2]
input %k: f32[2]
body 0 yes
  symbol "batch"
  input %x: f32[batch,2]
  input %k: f32[2]
  const %two: f32[] = {2.0}
  %a: f32[batch,2] = Mul(%x, %two)  # double
  %b: f32[batch,2] = Add(%a, %k)  # shift
  output %b
end
body 1 no
  symbol "batch"
  input %x: f32[batch,2]
  input %k: f32[2]
  %d: f32[batch,2] = Sub(%x, %k)  # back
  output %d
end
%y: f32[batch,2] = If(%c, %x, %k) then=0 else=1  # choose
%z: f32[batch,2] = Relu(%y)  # relu
output %z
"#;

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
  %part: f32[] = Gather(%x, %turn) axis=0  # part
  %next: f32[] = Mul(%state, %part)  # next
  %below: bool[] = Less(%next, %limit)  # below
  output %below
  output %next
  output %part
end
%last: f32[], %parts: f32[?"turns.Loop.1.0"] = Loop(%trips, _, %one, %x) body=0 states=1  # turns
output %last
output %parts
"#;

pub fn cases() -> Vec<Case> {
    let x = || Tensor::from_f32(&[3, 2], vec![1.0, -2.0, 0.5, 4.0, -0.25, 3.0]);
    let k = || Tensor::from_f32(&[2], vec![0.5, -1.5]);
    let list = || Tensor::from_f32(&[5], vec![2.0, 3.0, 4.0, 5.0, 6.0]);
    let case = |name: &str, text: &str, inputs: Vec<Tensor>| Case {
        name: name.to_string(),
        graph: text::parse(text).unwrap_or_else(|e| panic!("{name}: {e}")),
        inputs,
    };
    vec![
        case("If_yes", CHOICE, vec![Tensor::from_bool(&[], vec![1]), x(), k()]),
        case("If_no", CHOICE, vec![Tensor::from_bool(&[], vec![0]), x(), k()]),
        case("Loop_number", TURNS, vec![Tensor::from_i64(&[], vec![2]), list()]),
        case("Loop_condition", TURNS, vec![Tensor::from_i64(&[], vec![9]), list()]),
    ]
}
