//! After a batch is bound, a run allocates nothing, on no thread. A program of its own, so that no thread of a test
//! harness is counted.

mod common;

use common::*;
use lacuna_engine::{InputRef, Options, OutputMut, Session};
use lacuna_ir::Graph;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

fn main() {
    a_bound_run_allocates_nothing();
    println!("test a_bound_run_allocates_nothing ... ok");
}

fn a_bound_run_allocates_nothing() {
    for &(name, make) in NETS {
        for quantised in [false, true] {
            for threads in [1, 2] {
                let options = Options { threads: Some(threads), ..Options::default() };
                let made = allocations(&make(quantised, 0.9), &options, 0);
                assert_eq!(made, 0, "{name} quantised {quantised} {threads} threads");
            }
        }
    }
    for threads in [1, 2] {
        let options = Options { threads: Some(threads), cache_bytes: Some(40 << 10), ..Options::default() };
        assert_eq!(allocations(&mobile(128, 96), &options, 1), 0, "in bands, {threads} threads");
    }
}

/// Those of five runs of a bound session with so many chains that run in bands.
fn allocations(g: &Graph, options: &Options, bands: usize) -> usize {
    let mut session = Session::new(g, options).unwrap();
    session.bind(2).unwrap();
    assert_eq!(session.steps().iter().filter(|s| s.kernel == "bands_of_lines").count(), bands);
    let x = input(g, 2, 1);
    let lens: Vec<usize> =
        (0..session.outputs().len()).map(|i| session.output_dims(i).iter().product()).collect();
    let mut results: Vec<Vec<f32>> = lens.iter().map(|&n| vec![0.0; n]).collect();
    let inputs = [InputRef::from(&x)];
    let mut outputs: Vec<OutputMut<'_>> = results.iter_mut().map(|y| OutputMut::f32(y)).collect();
    // The first run may set up what the standard library keeps per thread.
    session.run_into(&inputs, &mut outputs).unwrap();
    let before = ALLOCATIONS.load(SeqCst);
    assert!(before > 0, "the allocator counts");
    for _ in 0..5 {
        session.run_into(&inputs, &mut outputs).unwrap();
    }
    ALLOCATIONS.load(SeqCst) - before
}
