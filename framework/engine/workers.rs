//! The session's own threads: they run a plan's steps in lockstep, each its fixed share of every step.
//!
//! Threads meet after a step by one growing counter; who waits spins a little, then parks. The caller is thread
//! 0. With one thread there is no counter and no meeting: a straight loop over the same steps.
//!
//! Or each thread runs all steps of a plan for one thread by itself, for pieces of a batch of its own, and they meet once.

use crate::affinity::pin_thread;
use crate::plan::{Bases, Plan, run_step};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

/// Looks at the counter before a thread parks: some 20 to 50 microseconds.
const SPINS: u32 = 2_000;

/// One run, on the caller's stack while it lasts.
struct Job {
    plan: *const Plan,
    bases: Bases,
    caller: Thread,
    /// Value of the counter when the run began.
    base: u64,
    /// Meet after every step, so that each can be timed.
    every_step: bool,
    /// Each thread takes pieces of its own: the next that nobody has.
    apart: Option<Apart>,
    next: AtomicUsize,
}

/// A batch in pieces, each of which a thread runs alone. Tables of pointers have a row for each piece.
#[derive(Clone, Copy, Debug)]
pub struct Apart {
    pub pieces: usize,
    /// From one thread's arena to the next.
    pub arena_bytes: usize,
    /// Pointers of a row.
    pub inputs: usize,
    pub outputs: usize,
}

struct Shared {
    threads: usize,
    /// Counts runs; a new value means a new job.
    epoch: AtomicU64,
    stop: AtomicBool,
    job: AtomicPtr<Job>,
    /// Arrivals at meetings since the beginning.
    arrived: AtomicU64,
    /// Threads that are parked or about to park.
    parked: Vec<AtomicBool>,
}

pub struct Workers {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// Handles of the workers, for waking them: number `i` is thread `i + 1`.
    threads: Arc<std::sync::OnceLock<Vec<Thread>>>,
}

/// A kernel that panics would leave the other threads waiting for ever, or using a dead stack.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Workers {
    /// Starts `threads - 1` threads, thread `i` on core `first_core + i` if cores matter. Fails if the system gives no
    /// more, or cannot pin threads.
    pub fn start(threads: usize, first_core: Option<usize>) -> std::io::Result<Workers> {
        let shared = Arc::new(Shared {
            threads,
            epoch: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            job: AtomicPtr::new(std::ptr::null_mut()),
            arrived: AtomicU64::new(0),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut workers =
            Workers { shared, handles: Vec::with_capacity(threads), threads: Arc::new(Default::default()) };
        for me in 1..threads {
            let (shared, others) = (workers.shared.clone(), workers.threads.clone());
            let builder = std::thread::Builder::new().name(format!("lacuna-{me}"));
            let (pinned, is_pinned) = std::sync::mpsc::channel();
            workers.handles.push(builder.spawn(move || {
                let _ = pinned.send(first_core.map_or(Ok(()), |first| pin_thread(first + me)));
                serve(&shared, &others, me)
            })?);
            is_pinned.recv().unwrap_or(Ok(()))?;
        }
        let all = workers.handles.iter().map(|h| h.thread().clone()).collect();
        workers.threads.set(all).expect("set once");
        Ok(workers)
    }

    /// Runs the plan; returns when all is done. `times`, one per step, gets the nanoseconds of each step.
    ///
    /// # Safety
    /// As `plan::run_step`, for the whole plan.
    pub unsafe fn run(&mut self, plan: &Plan, bases: &Bases, times: Option<&mut [u64]>) {
        // SAFETY: the caller's promise.
        unsafe { self.run_job(plan, bases, None, times) };
    }

    /// Runs a plan for one thread, which cannot fail, for every piece: each thread takes the next when it is done with
    /// one, so that a thread on a slower core does fewer. `times` gets the nanoseconds of each step of the caller's pieces together.
    ///
    /// # Safety
    /// As `plan::run_step`, for the whole plan and every piece: there are as many arenas as threads, and the tables of
    /// pointers have a row for each piece. Rows of outputs share no memory.
    pub unsafe fn run_apart(&mut self, plan: &Plan, bases: &Bases, apart: Apart, times: Option<&mut [u64]>) {
        // SAFETY: the caller's promise.
        unsafe { self.run_job(plan, bases, Some(apart), times) };
    }

    /// # Safety
    /// As [`Workers::run`] or [`Workers::run_apart`].
    unsafe fn run_job(
        &mut self,
        plan: &Plan,
        bases: &Bases,
        apart: Option<Apart>,
        times: Option<&mut [u64]>,
    ) {
        // Threads meet after the last step: without one nobody would wait for them.
        if plan.steps() == 0 {
            return;
        }
        let _guard = AbortOnPanic;
        let s = &*self.shared;
        let job = Job {
            plan,
            bases: *bases,
            caller: std::thread::current(),
            base: s.arrived.load(SeqCst),
            every_step: times.is_some(),
            apart,
            next: AtomicUsize::new(0),
        };
        if s.threads > 1 {
            s.job.store((&raw const job).cast_mut(), SeqCst);
            s.epoch.fetch_add(1, SeqCst);
            for i in 1..s.threads {
                self.wake(i);
            }
        }
        let wake = |i: usize| {
            if i > 0 {
                self.unpark(i)
            }
        };
        // SAFETY: the caller's promise; the workers run the other parts, and are done when this returns, because
        // the last step ends with a meeting.
        unsafe { follow(s, &job, 0, wake, times) };
    }

    fn wake(&self, thread: usize) {
        if self.shared.parked[thread].swap(false, SeqCst) {
            self.unpark(thread);
        }
    }

    fn unpark(&self, thread: usize) {
        if let Some(threads) = self.threads.get() {
            threads[thread - 1].unpark();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.epoch.fetch_add(1, SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker that panicked has aborted the process.
            let _ = handle.join();
        }
    }
}

/// A worker's life: wait for a job, follow it, wait for the next.
fn serve(s: &Shared, others: &std::sync::OnceLock<Vec<Thread>>, me: usize) {
    let _guard = AbortOnPanic;
    let mut seen = 0;
    loop {
        wait(&s.parked[me], || s.epoch.load(SeqCst) != seen);
        seen = s.epoch.load(SeqCst);
        if s.stop.load(SeqCst) {
            return;
        }
        // SAFETY: the job lives until all threads have met after its last step; its addresses were stored before
        // the epoch that was seen here.
        let job = unsafe { &*s.job.load(SeqCst) };
        // After the last meeting the job may be gone: its caller's handle must not be.
        let caller = job.caller.clone();
        let wake = |i: usize| match (i, others.get()) {
            (0, _) => caller.unpark(),
            (_, Some(threads)) => threads[i - 1].unpark(),
            _ => {}
        };
        // SAFETY: the promise that `Workers::run` was given.
        unsafe { follow(s, job, me, wake, None) };
    }
}

/// Thread `me`'s parts of all steps.
///
/// # Safety
/// As [`Workers::run`]; every thread follows the same job.
unsafe fn follow(s: &Shared, job: &Job, me: usize, wake: impl Fn(usize), mut times: Option<&mut [u64]>) {
    let (bases, base, every_step) = (job.bases, job.base, job.every_step);
    // SAFETY: the plan outlives the run.
    let plan = unsafe { &*job.plan };
    if let Some(apart) = job.apart {
        loop {
            let piece = job.next.fetch_add(1, Relaxed);
            if piece >= apart.pieces {
                break;
            }
            // SAFETY: the promise of `Workers::run_apart`: this thread's arena, this piece's rows.
            unsafe {
                let bases = Bases {
                    arena: bases.arena.add(me * apart.arena_bytes),
                    inputs: bases.inputs.add(piece * apart.inputs),
                    outputs: bases.outputs.add(piece * apart.outputs),
                    ..bases
                };
                run_alone(plan, &bases, times.as_deref_mut());
            }
        }
        if s.threads > 1 {
            meet(s, base + s.threads as u64, me, &wake);
        }
        return;
    }
    // SAFETY: as above.
    let fault = unsafe { &*bases.fault };
    let steps = plan.steps();
    let mut meetings = 0;
    let mut last = times.is_some().then(Instant::now);
    for step in 0..steps {
        // A step that fails does so on the caller's thread, before the next meeting: there all threads see it, and
        // all leave.
        let mut inside = 0;
        if !fault.stops(step) {
            // SAFETY: `run_step`'s promise is this function's; barriers order the steps.
            inside = unsafe { run_step(plan, &bases, step, me, s.threads, times.as_deref_mut()) };
        }
        if s.threads > 1 && (plan.step_barrier[step] || every_step || step + 1 == steps) {
            meetings += 1;
            meet(s, base + meetings * s.threads as u64, me, &wake);
        }
        if let (Some(times), Some(before)) = (times.as_deref_mut(), last) {
            let now = Instant::now();
            times[step] = (now.duration_since(before).as_nanos() as u64).saturating_sub(inside);
            last = Some(now);
        }
        // After the last meeting neither plan nor fault need be there any more.
        let meets = |step: usize| s.threads == 1 || plan.step_barrier[step] || every_step;
        if step + 1 < steps && meets(step) && fault.stops(step) {
            // Nobody leaves before all have looked: the fault is the caller's again then.
            if s.threads > 1 {
                meet(s, base + (meetings + 1) * s.threads as u64, me, &wake);
            }
            return;
        }
    }
}

/// All steps on this thread. `times` get the nanoseconds of each added.
///
/// # Safety
/// As `plan::run_step`, for the whole plan.
unsafe fn run_alone(plan: &Plan, bases: &Bases, mut times: Option<&mut [u64]>) {
    for step in 0..plan.steps() {
        let before = times.is_some().then(Instant::now);
        // SAFETY: the caller's promise; steps follow each other.
        let inside = unsafe { run_step(plan, bases, step, 0, 1, times.as_deref_mut()) };
        if let (Some(times), Some(before)) = (times.as_deref_mut(), before) {
            times[step] += (before.elapsed().as_nanos() as u64).saturating_sub(inside);
        }
    }
}

/// Returns when the counter of arrivals has reached `target`.
fn meet(s: &Shared, target: u64, me: usize, wake: &impl Fn(usize)) {
    if s.arrived.fetch_add(1, SeqCst) + 1 == target {
        for i in (0..s.threads).filter(|&i| i != me) {
            if s.parked[i].swap(false, SeqCst) {
                wake(i);
            }
        }
        return;
    }
    wait(&s.parked[me], || s.arrived.load(SeqCst) >= target);
}

/// Spins, then parks until `done`. Who makes `done` true looks at `parked` afterwards.
fn wait(parked: &AtomicBool, done: impl Fn() -> bool) {
    for _ in 0..SPINS {
        if done() {
            return;
        }
        std::hint::spin_loop();
    }
    loop {
        parked.store(true, SeqCst);
        if done() {
            break;
        }
        std::thread::park();
        if done() {
            break;
        }
    }
    parked.store(false, SeqCst);
}
