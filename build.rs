//! Leaves debug sections out of what is linked: with DataFusion's they make a binary of 700 MB out
//! of one of 100. Symbol names stay, so a backtrace still names its functions.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-link-arg=-Wl,--strip-debug");
    }
}
