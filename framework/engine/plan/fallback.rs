//! Ops that no kernel runs: a step that calls the op table's own function on tensors.
//!
//! It allocates, runs on the caller's thread, and can fail: then the run stops at the next meeting of threads and says
//! why. Operands are gathered from wherever they lie, and results scattered to where their readers want them.

use super::build::{Builder, Operand, operand, push};
use super::exec::Bases;
use super::place::Place;
use super::{Plan, Slot, StepKind};
use crate::error::{Error, Result};
use crate::session::{Options, Session};
use crate::target::Isa;
use lacuna_ir::flow::{self, Bodies};
use lacuna_ir::op::IfAttr;
use lacuna_ir::{Attr, BodyId, DType, Def, OpId, OpKind, Tensor};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};

/// How an operand lies in its space, from its slot on.
#[derive(Clone, Debug, PartialEq)]
pub struct Strided {
    pub dtype: DType,
    pub dims: Vec<usize>,
    /// In elements.
    pub strides: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceStep {
    pub kind: OpKind,
    pub attr: Attr,
    /// Absent inputs are `None` and have no slot. Slots are those of outputs, then those of inputs.
    pub outputs: Vec<Strided>,
    pub inputs: Vec<Option<Strided>>,
}

/// Sessions of the bodies of choices, each made when its body is first chosen. `None`: only the interpreter runs it.
#[derive(Default)]
pub struct BodySessions(Mutex<Vec<(BodyId, Option<Session>)>>);

impl Clone for BodySessions {
    /// They are a run's to make.
    fn clone(&self) -> BodySessions {
        BodySessions::default()
    }
}

impl std::fmt::Debug for BodySessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("BodySessions").field(&self.lock().len()).finish()
    }
}

impl BodySessions {
    fn lock(&self) -> MutexGuard<'_, Vec<(BodyId, Option<Session>)>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What the chosen body makes. `None` if no session runs it, or not with these inputs: then the interpreter does, or says
    /// what is wrong.
    fn choose(&self, bodies: &Bodies, a: IfAttr, isa: Isa, inputs: &[Option<Tensor>]) -> Option<Vec<Tensor>> {
        let holds = *inputs.first()?.as_ref()?.as_bool()?.first()? != 0;
        let body = if holds { a.then_body } else { a.else_body? };
        let read: Vec<Tensor> = inputs[1..].iter().cloned().collect::<Option<_>>()?;
        let mut sessions = self.lock();
        let at = sessions.iter().position(|(id, _)| *id == body).unwrap_or_else(|| {
            let options = Options { threads: Some(1), isa: Some(isa), ..Options::default() };
            let session = bodies.get(body).and_then(|body| Session::for_inputs(body, &options, &read).ok());
            sessions.push((body, session));
            sessions.len() - 1
        });
        sessions[at].1.as_mut()?.run(&read).ok()
    }
}

/// What went wrong in a run: the first step that failed.
#[derive(Debug)]
pub struct Fault {
    step: AtomicUsize,
    why: Mutex<String>,
}

impl Default for Fault {
    fn default() -> Fault {
        Fault { step: AtomicUsize::new(usize::MAX), why: Mutex::default() }
    }
}

impl Fault {
    /// Whether `step` comes after one that failed.
    pub fn stops(&self, step: usize) -> bool {
        self.step.load(SeqCst) <= step
    }

    fn set(&self, step: usize, why: String) {
        *self.why.lock().unwrap_or_else(|e| e.into_inner()) = why;
        self.step.store(step, SeqCst);
    }

    /// The step and the reason, if a run failed; the next one starts anew.
    pub fn take(&self) -> Option<(usize, String)> {
        let step = self.step.load(SeqCst);
        if step == usize::MAX {
            return None;
        }
        self.step.store(usize::MAX, SeqCst);
        Some((step, std::mem::take(&mut *self.why.lock().unwrap_or_else(|e| e.into_inner()))))
    }
}

/// Emits the step for `op`, which has no faster one because of `why`.
pub fn emit_reference(b: &mut Builder<'_>, op: OpId, why: String) -> Result<()> {
    let g = b.g;
    let (mut operands, mut outputs, mut inputs) = (Vec::<Operand>::new(), Vec::new(), Vec::new());
    let strided = |p: &Place, dtype| Strided { dtype, dims: p.dims.clone(), strides: p.strides.clone() };
    let mut work = 0;
    for (i, &v) in g.outputs_of(op).iter().enumerate() {
        let place = b.output_place_of(i)?;
        operands.push(operand(&place, g.value_dtype[v]));
        work += place.dims.iter().product::<usize>();
        outputs.push(strided(&place, g.value_dtype[v]));
    }
    for &v in g.inputs_of(op) {
        if v.is_none() {
            inputs.push(None);
            continue;
        }
        let dims = b.dims(v)?;
        if let Def::Const(c) = g.value_def[v]
            && g.consts[c].is_empty()
            && !dims.contains(&0)
        {
            return b.error(format!("needs '{}', whose bytes were given back", g.value_name[v]));
        }
        let place = b.place(v)?;
        operands.push(operand(&place, g.value_dtype[v]));
        work += place.dims.iter().product::<usize>();
        inputs.push(Some(strided(&place, g.value_dtype[v])));
    }
    let step = ReferenceStep { kind: g.op_kind[op], attr: g.op_attr[op], outputs, inputs };
    let row = push(&mut b.plan.references, step);
    // Plain loops that allocate: some ten times what a map takes.
    b.step(StepKind::Reference, row, &operands, 1, "reference", 10 * work);
    if let Some(info) = b.plan.step_info.last_mut() {
        info.reason = why;
    }
    Ok(())
}

/// Runs step number `at` of the plan.
///
/// # Safety
/// As [`super::run_step`]; `slots` are those of the step.
pub unsafe fn run_reference(plan: &Plan, at: usize, slots: &[Slot], bases: &Bases) {
    let step = &plan.references[plan.step_row[at] as usize];
    // SAFETY: the fault outlives the run (`Bases`).
    let fault = unsafe { &*bases.fault };
    let (outs, ins) = slots.split_at(step.outputs.len());
    let mut next = ins.iter();
    let mut tensors = Vec::with_capacity(step.inputs.len());
    for input in &step.inputs {
        tensors.push(match input {
            None => None,
            // SAFETY: the planner gave every input that is there a slot, and laid it out in its space.
            Some(s) => next.next().map(|&slot| unsafe { gather(s, bases.at(slot)) }),
        });
    }
    let inputs: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
    let row = step.kind.row();
    let chosen = match step.attr {
        Attr::If(a) => plan.body_sessions.choose(&plan.bodies, a, bases.isa, &tensors),
        _ => None,
    };
    let made = match chosen {
        Some(made) => Ok(made),
        None if flow::has_bodies(&step.attr) => flow::evaluate(&plan.bodies, &step.attr, &inputs),
        None => lacuna_ir::shape::infer_tensors(row.infer, &step.attr, &inputs)
            .and_then(|_| (row.eval)(&step.attr, &inputs)),
    };
    let made = match made {
        Ok(made) => made,
        Err(why) => return fault.set(at, why),
    };
    for (i, (s, &slot)) in step.outputs.iter().zip(outs).enumerate() {
        match made.get(i) {
            // SAFETY: as above; no other step runs beside this one that uses these bytes.
            Some(t) if t.dtype() == s.dtype && t.dims == s.dims => unsafe { scatter(t, s, bases.at(slot)) },
            Some(t) => {
                let (want, have) = (&s.dims, &t.dims);
                return fault.set(at, format!("result {i} is {have:?}, the plan is for {want:?}"));
            }
            None => return fault.set(at, format!("has no result {i}")),
        }
    }
}

/// Calls `f` with the element offset of every run of elements along the last dimension.
fn runs(s: &Strided, mut f: impl FnMut(usize)) {
    let lead = s.dims.len().saturating_sub(1);
    let count: usize = s.dims[..lead].iter().product();
    for i in 0..count {
        let (mut rest, mut at) = (i, 0);
        for d in (0..lead).rev() {
            at += rest % s.dims[d] * s.strides[d];
            rest /= s.dims[d];
        }
        f(at);
    }
}

/// Elements of a run, and elements from one to the next.
fn run_of(s: &Strided) -> (usize, usize) {
    (s.dims.last().copied().unwrap_or(1), s.strides.last().copied().unwrap_or(1))
}

/// # Safety
/// `from` begins a value that lies as `s` says.
unsafe fn gather(s: &Strided, from: *const u8) -> Tensor {
    let size = s.dtype.size();
    let (len, stride) = run_of(s);
    let mut bytes = Vec::with_capacity(s.dims.iter().product::<usize>() * size);
    if len > 0 {
        runs(s, |at| {
            let (count, span) = if stride == 1 { (1, len) } else { (len, 1) };
            for i in 0..count {
                // SAFETY: the caller's promise; these are elements of the value.
                let run =
                    unsafe { std::slice::from_raw_parts(from.add((at + i * stride) * size), span * size) };
                bytes.extend_from_slice(run);
            }
        });
    }
    Tensor::from_bytes(s.dtype, &s.dims, &bytes).expect("every element was gathered")
}

/// # Safety
/// `to` begins memory for a value that lies as `s` says; `t` has its dtype and dims.
unsafe fn scatter(t: &Tensor, s: &Strided, to: *mut u8) {
    let size = s.dtype.size();
    let (len, stride) = run_of(s);
    if len == 0 {
        return;
    }
    let mut left = t.bytes();
    runs(s, |at| {
        let (count, span) = if stride == 1 { (1, len) } else { (len, 1) };
        for i in 0..count {
            let (run, rest) = left.split_at(span * size);
            left = rest;
            // SAFETY: the caller's promise.
            unsafe { to.add((at + i * stride) * size).copy_from_nonoverlapping(run.as_ptr(), run.len()) };
        }
    });
}

/// What a failed step says to the caller.
pub fn fault_error(plan: &Plan, (step, why): (usize, String)) -> Error {
    match plan.step_info.get(step) {
        Some(info) => Error::Op { op: info.op.clone(), kind: info.kind, why },
        None => Error::Op { op: String::new(), kind: "reference", why },
    }
}
