//! Builds a guest image: `build_image NAME --images-dir DIR [--package P]... [--kernel K] [--systemd] [--initrd-only]`.

use storage::image::{BuildOptions, ImageSpec, ImageStore, Init, Progress, Stage};

struct Printed(Option<Stage>);

impl Progress for Printed {
    fn update(&mut self, stage: Stage, _done: u64, _total: u64) {
        if self.0.replace(stage) != Some(stage) {
            eprintln!("{}", stage.label());
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut spec = ImageSpec::new(args.next().ok_or("NAME is missing")?);
    let mut dir = String::from("images");
    let mut options = BuildOptions::default();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--images-dir" => dir = value()?,
            "--package" => spec.packages.push(value()?),
            "--kernel" => spec.kernel = value()?,
            "--disk-mib" => spec.root_disk_bytes = Some(value()?.parse::<u64>()? << 20),
            "--systemd" => spec.init = Init::Systemd,
            "--append-only" => spec.redis_append_only = true,
            "--initrd-only" => spec.root_disk_bytes = None,
            "--force" => options.force = true,
            "--refresh" => options.refresh = true,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let built = ImageStore::new(dir).build(&spec, options, &mut Printed(None))?;
    let manifest = built.image.manifest();
    let state = if built.cached { "unchanged" } else { "built" };
    println!(
        "{state}: {} ({}, {} packages)",
        built.image.dir().display(),
        manifest.kernel.release,
        manifest.packages.len()
    );
    for file in &manifest.files {
        println!("  {} {} {}", file.sha256, file.size_bytes, file.name);
    }
    Ok(())
}
