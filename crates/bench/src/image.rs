//! The guest images that benchmarks and the demo run.

use anyhow::{Context, Result};
use host::paths;
use storage::image::{BuildOptions, Image, ImageSpec, ImageStore};
use terminal::image_progress::Bar;
use terminal::interrupt;
use terminal::output::say;

/// The image of a spec, for demo and benchmarks: built if need be, with its progress shown. Where it cannot be built, one that was built
/// from the same spec before is good enough: on a machine without a network, say.
pub fn ready(spec: &ImageSpec) -> Result<Image> {
    let store = ImageStore::new(paths::images_dir()?);
    let mut bar = Bar::default();
    let built = store.build(spec, BuildOptions::default(), &mut bar);
    bar.clear();
    match built {
        Ok(built) => Ok(built.image),
        Err(error) => match store.get(&spec.name) {
            Ok(image) if image.manifest().spec == *spec && !interrupt::is_requested() => {
                say(format_args!("image {} may be out of date: {error}", spec.name));
                Ok(image)
            }
            _ => Err(error).context("cannot build the guest image"),
        },
    }
}
