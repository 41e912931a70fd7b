//! Which layer reads and makes what: noted during one forward pass, because only the pass knows. Quantisation asks where a
//! layer's input was observed; nothing else does, and outside of [`record`] nothing is noted.

use burn::module::ParamId;
use std::cell::RefCell;

/// One meeting of a layer, known by its weight, with a place where values are observed, known by its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    Reads { layer: ParamId, site: ParamId },
    Makes { layer: ParamId, site: ParamId },
}

thread_local! {
    static NOTES: RefCell<Option<Vec<Meeting>>> = const { RefCell::new(None) };
}

/// What the layers of a module read and make while `forward` runs on this thread, in order.
pub fn record(forward: impl FnOnce()) -> Vec<Meeting> {
    NOTES.with_borrow_mut(|notes| *notes = Some(Vec::new()));
    forward();
    NOTES.take().unwrap_or_default()
}

pub(crate) fn note(meeting: Meeting) {
    NOTES.with_borrow_mut(|notes| notes.iter_mut().for_each(|notes| notes.push(meeting)));
}
