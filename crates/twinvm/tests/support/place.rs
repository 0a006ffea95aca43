//! Where tests with guests run: on this machine as it is, or in the nested machine (`../kvm_machine`), which says what is different there.

use spec::EngineKind;

/// Names the engine that guests run on.
pub const ENGINE: &str = "TWINVM_TEST_ENGINE";
/// How many times slower than usual everything is.
pub const SLOWNESS: &str = "TWINVM_TEST_SLOWNESS";
/// Set where images cannot be built, and those that are needed have been.
pub const IMAGES_ARE_BUILT: &str = "TWINVM_TEST_IMAGES_ARE_BUILT";

/// The engine that guests run on.
pub fn engine() -> EngineKind {
    match std::env::var(ENGINE).as_deref() {
        Err(_) | Ok("soft") => EngineKind::Soft,
        Ok("kvm") => EngineKind::Kvm,
        Ok(other) => panic!("{ENGINE}={other}"),
    }
}

/// How many times slower than usual everything is, so that a silence that usually means a loss means nothing.
pub fn slowness() -> u32 {
    std::env::var(SLOWNESS).map_or(1, |times| times.parse().unwrap())
}

/// Whether images are taken as they are.
pub fn images_are_built() -> bool {
    std::env::var_os(IMAGES_ARE_BUILT).is_some()
}
