//! The one binary. Everything lives in the library; this file hands over to the command line.

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    shortlist::commands::main()
}
