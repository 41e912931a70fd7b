//! Every modifier that prunes: a small network is trained for the whole of its schedule, and what each event and step made
//! is compared with a computation of its own ([`oracle`], and in each case), not with the code that is tested.

mod gradual;
mod harness;
mod oracle;
mod second_order;
mod sparse_training;

use lacuna_recipe::{MODIFIERS, Status};
use lacuna_train::optimizer::Optimizer;

/// A recipe for each class, and the check of all its events and steps.
pub struct Case {
    pub class: &'static str,
    /// Behind `!Class`.
    pub keys: &'static str,
    pub check: fn(&[&str], Optimizer),
}

const OPTIMIZERS: [Optimizer; 3] = [Optimizer::SGD, Optimizer::ADAM, Optimizer::ADAMW];
const EPOCHS: u32 = 6;

fn cases() -> impl Iterator<Item = &'static Case> {
    [gradual::CASES, sparse_training::CASES, second_order::CASES].into_iter().flatten()
}

fn line(case: &Case) -> String {
    format!("!{} {{{}}}", case.class, case.keys)
}

#[test]
fn every_event_and_step_is_what_the_formulas_say() {
    for case in cases() {
        for optimizer in OPTIMIZERS {
            (case.check)(&[&line(case)], optimizer);
        }
    }
}

#[test]
fn every_training_resumes_to_the_same_bytes() {
    for case in cases() {
        harness::resumes_to_the_same_bytes(EPOCHS, &[&line(case)], Optimizer::ADAMW);
    }
}

#[test]
fn every_pruning_modifier_has_a_case() {
    let pruning =
        MODIFIERS.iter().filter(|row| row.class.contains("Pruning") || row.class.contains("Powerprop"));
    let carried_out =
        pruning.filter(|row| row.status == Status::Implemented && row.class != "LayerPruningModifier");
    for row in carried_out {
        assert!(cases().any(|case| case.class == row.class), "{} has no case", row.class);
    }
}
