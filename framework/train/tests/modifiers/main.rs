//! Every modifier that prunes: a small network is trained for the whole of its schedule, and what each event and step made
//! is compared with a computation of its own ([`oracle`], and in each case), not with the code that is tested.

mod gradual;
mod harness;
mod oracle;
mod second_order;
mod sparse_training;
mod structured;

use lacuna_recipe::{MODIFIERS, Status};
use lacuna_train::optimizer::Optimizer;

/// A recipe for each class, and the check of all its events and steps.
pub struct Case {
    pub class: &'static str,
    /// Behind `!Class`.
    pub keys: &'static str,
    /// Another modifier that this one works on, or nothing.
    pub also: &'static str,
    pub check: fn(&[&str], Optimizer),
}

const OPTIMIZERS: [Optimizer; 3] = [Optimizer::SGD, Optimizer::ADAM, Optimizer::ADAMW];
const EPOCHS: u32 = 6;

fn cases() -> impl Iterator<Item = &'static Case> {
    [gradual::CASES, sparse_training::CASES, second_order::CASES, structured::CASES].into_iter().flatten()
}

fn lines(case: &Case) -> Vec<String> {
    let own = format!("!{} {{{}}}", case.class, case.keys);
    [case.also.to_owned(), own].into_iter().filter(|line| !line.is_empty()).collect()
}

#[test]
fn every_event_and_step_is_what_the_formulas_say() {
    for case in cases() {
        let lines = lines(case);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        for optimizer in OPTIMIZERS {
            (case.check)(&lines, optimizer);
        }
    }
}

#[test]
fn every_training_resumes_to_the_same_bytes() {
    for case in cases() {
        let lines = lines(case);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        harness::resumes_to_the_same_bytes(EPOCHS, &lines, Optimizer::ADAMW);
    }
}

#[test]
fn every_pruning_modifier_has_a_case() {
    let pruning = MODIFIERS
        .iter()
        .filter(|row| ["Pruning", "Powerprop", "Thinning"].iter().any(|s| row.class.contains(s)));
    let carried_out =
        pruning.filter(|row| row.status == Status::Implemented && row.class != "LayerPruningModifier");
    for row in carried_out {
        assert!(cases().any(|case| case.class == row.class), "{} has no case", row.class);
    }
}
