//! The executable; everything is in the library.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

// A send is allocated and freed by different threads in some twenty pieces: a fifth of the CPU time of a group under
// full load with the system's allocator (docs/performance.md).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    rmq::cli::main()
}
