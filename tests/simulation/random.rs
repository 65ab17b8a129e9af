//! Randomness of the whole process from one seed. Election times, ids, the order in which tokio wakes
//! tasks and the keys of hash maps all come from `getrandom`, which the standard library and the crates
//! look for by its name; so the process has one of its own.

use std::sync::atomic::{AtomicU64, Ordering};

static STATE: AtomicU64 = AtomicU64::new(0);

/// Sets the seed. To be called before anything asks for randomness.
pub(crate) fn seed(seed: u64) {
    STATE.store(
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        Ordering::Relaxed,
    );
}

/// SplitMix64.
fn next() -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut z = STATE.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Takes the place of the C library's.
///
/// # Safety
///
/// `buf` is valid for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buf: *mut u8, len: usize, _flags: u32) -> isize {
    for at in 0..len {
        // SAFETY: within the caller's buffer.
        unsafe { buf.add(at).write((next() >> 32) as u8) };
    }
    isize::try_from(len).expect("buffers are small")
}
