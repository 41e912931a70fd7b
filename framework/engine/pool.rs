//! Sessions of one model for any number of callers, which share the cores as the load asks.
//!
//! A caller that is alone runs on all cores. When others run or wait, each runs on one core, beside them: that
//! gives the most results per second. All sessions read the same packed weights.

use crate::error::Result;
use crate::session::{Options, Session};
use lacuna_ir::Graph;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What is free, and who wants it.
struct State {
    /// Runs on all cores.
    wide: Option<Session>,
    /// Run on one core each.
    narrow: Vec<Session>,
    /// Sessions that are out.
    running: usize,
    waiting: usize,
}

/// A model that many threads run at a time.
pub struct Pool {
    state: Mutex<State>,
    changed: Condvar,
    cores: usize,
}

/// A session that goes back when this is dropped.
struct Lent<'a> {
    pool: &'a Pool,
    session: Option<Session>,
}

impl Pool {
    /// As [`Session::new`]; `options.threads` are the cores of all sessions together.
    pub fn new(g: &Graph, options: &Options) -> Result<Pool> {
        let wide = Session::new(g, options)?;
        let cores = wide.target().threads;
        let narrow = match cores {
            1 => Vec::new(),
            _ => {
                let first = wide.stream(1, 0)?;
                let rest: Result<Vec<Session>> = (1..cores).map(|core| first.stream(1, core)).collect();
                std::iter::once(Ok(first)).chain(rest?.into_iter().map(Ok)).collect::<Result<_>>()?
            }
        };
        let state = State { wide: Some(wide), narrow, running: 0, waiting: 0 };
        Ok(Pool { state: Mutex::new(state), changed: Condvar::new(), cores })
    }

    /// Cores of all sessions together.
    pub fn cores(&self) -> usize {
        self.cores
    }

    /// Calls `f` with a session, as soon as one is free.
    pub fn with<R>(&self, f: impl FnOnce(&mut Session) -> R) -> R {
        let mut lent = self.take();
        f(lent.session.as_mut().expect("held until it is dropped"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Who panicked with the lock had changed nothing halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Lent<'_> {
        let mut state = self.lock();
        state.waiting += 1;
        loop {
            let alone = state.running == 0 && (state.waiting == 1 || state.narrow.is_empty());
            let session = match () {
                // While the wide session runs, it has all cores.
                () if state.wide.is_none() => None,
                () if alone => state.wide.take(),
                () => state.narrow.pop(),
            };
            if session.is_some() {
                state.waiting -= 1;
                state.running += 1;
                return Lent { pool: self, session };
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let mut state = self.pool.lock();
        state.running -= 1;
        match session.target().threads == self.pool.cores {
            true => state.wide = Some(session),
            false => state.narrow.push(session),
        }
        drop(state);
        self.pool.changed.notify_all();
    }
}
