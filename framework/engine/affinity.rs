//! Keeping threads on cores.

use std::io;

/// Keeps the calling thread on core number `core` of those that this process may use, counted from 0, and again from
/// the start when there are no more.
///
/// # Errors
/// What the system says, or that it cannot do this.
#[cfg(target_os = "linux")]
pub fn pin_thread(core: usize) -> io::Result<()> {
    let cores = allowed()?;
    // SAFETY: a set of processors is plain bits, for which zeros are a value; 0 is the calling thread.
    unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cores[core % cores.len()], &mut one);
        match libc::sched_setaffinity(0, size_of_val(&one), &one) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The processors that this process might use when it first asked: a thread that is pinned would see its own only.
#[cfg(target_os = "linux")]
fn allowed() -> io::Result<&'static [usize]> {
    static CORES: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    let cores = CORES.get_or_init(|| {
        // SAFETY: as above; the call gets the set's size and writes no more.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            match libc::sched_getaffinity(0, size_of_val(&set), &mut set) {
                0 => (0..libc::CPU_SETSIZE as usize).filter(|&c| libc::CPU_ISSET(c, &set)).collect(),
                _ => Vec::new(),
            }
        }
    });
    match cores.is_empty() {
        true => Err(io::Error::other("the system does not say which cores there are")),
        false => Ok(cores),
    }
}

#[cfg(not(target_os = "linux"))]
pub fn pin_thread(_: usize) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "threads cannot be pinned on this system"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_stays_and_others_are_free() {
        let before = allowed().unwrap().len();
        std::thread::scope(|s| s.spawn(|| pin_thread(before + 1)).join().unwrap()).unwrap();
        assert_eq!(allowed().unwrap().len(), before);
        assert_eq!(std::thread::available_parallelism().unwrap().get(), before);
    }
}
