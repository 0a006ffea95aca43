//! `twinvm image`: guest images, made from Debian's packages or of disks that somebody else has made.

mod pull;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use host::paths;
use serde_json::json;
use spec::ByteSize;
use storage::image::{BuildOptions, Image, ImageSpec, ImageStore, Init, Removal, Suite};
use terminal::image_progress::Bar;
use terminal::interrupt;
use terminal::output::{human_bytes, print_json, print_line, print_table, say, table};

#[derive(Subcommand)]
pub enum ImageCommand {
    /// Build a bootable Debian guest from Debian's own packages (no root needed)
    #[command(after_help = "\
Examples:
  twinvm image build redis --package redis-server
  twinvm image build db --package postgresql --disk-size 4G
  twinvm image build web --package nginx --init systemd
  twinvm image build next --package redis-server --suite trixie
  twinvm image build tiny --no-disk
A package or kernel may name a suite: --kernel linux-image-cloud-amd64/bookworm-backports
The default kernel of Debian 12 does not know that its VM was restored from a snapshot: two restores draw the same random numbers for up to a
minute. One that does, as Debian 13's, and takes about twice as long to boot on the software processor: --kernel linux-image-6.12-cloud-amd64
Packages are installed with their maintainer scripts, in namespaces: an ordinary user needs the package uidmap and subordinate IDs.")]
    Build(BuildArguments),
    /// Make an image of a disk that somebody else has made, from a file or by HTTPS
    #[command(after_help = pull::HELP)]
    Pull(pull::PullArguments),
    /// List the images
    List(FormatArguments),
    /// Show what an image was made of
    Show(ShowArguments),
    /// Remove images; their files stay while a disk is based on them
    Rm(RemoveArguments),
    /// Remove the files of earlier versions and removed images that no disk is based on
    #[command(after_help = "\
An image is built again without harm to the disks that are based on it: each build is a version of its own, and stays while a disk needs it.
It is known which disks do: those that twinvm has made or started. Of others, which `qemu-img create -b` has made and no VM has used,
it is not, and neither of a disk that was moved since it was last used.")]
    Prune(PruneArguments),
}

#[derive(Args)]
pub struct FormatArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Folder of the images [default: images in the data folder]
    #[arg(long, value_name = "DIR")]
    images_dir: Option<PathBuf>,
}

impl FormatArguments {
    fn store(&self) -> Result<ImageStore> {
        Ok(ImageStore::new(self.images_dir.clone().map_or_else(paths::images_dir, Ok)?))
    }
}

#[derive(Args)]
pub struct BuildArguments {
    /// Name of the image
    name: String,
    /// A Debian package to install, with all it needs; may be repeated
    #[arg(long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Release of Debian: bookworm (12) or trixie (13)
    #[arg(long, default_value = "bookworm", value_parser = parse_suite)]
    suite: Suite,
    /// Install only what the packages depend on, without what they recommend
    #[arg(long)]
    no_recommends: bool,
    /// Kernel package
    #[arg(long, default_value = storage::image::KERNEL_DEFAULT)]
    kernel: String,
    /// Size of the root disk; the file takes only what is used [default: 2G]
    #[arg(long, value_name = "SIZE", conflicts_with = "no_disk")]
    disk_size: Option<ByteSize>,
    /// No root disk: a shell in the initial RAM disk, nothing else
    #[arg(long)]
    no_disk: bool,
    /// What runs as process 1: light or systemd
    #[arg(long, default_value = "light", value_parser = parse_init)]
    init: Init,
    /// Let Redis write every change to its append-only file before it answers
    #[arg(long)]
    redis_append_only: bool,
    /// Fetch the package lists again even if they are fresh
    #[arg(long)]
    refresh: bool,
    /// Build again even if nothing has changed
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Args)]
pub struct ShowArguments {
    /// Name of the image
    name: String,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Args)]
pub struct RemoveArguments {
    /// Names of the images
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Args)]
pub struct PruneArguments {
    /// Also folders of images that a version of twinvm built which did not note what disks are based on them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    format: FormatArguments,
}

fn parse_suite(text: &str) -> Result<Suite, String> {
    let names = Suite::ALL.map(Suite::name).join(" or ");
    Suite::named(text).ok_or_else(|| format!("must be {names}"))
}

fn parse_init(text: &str) -> Result<Init, String> {
    match text {
        "light" => Ok(Init::Light),
        "systemd" => Ok(Init::Systemd),
        _ => Err("must be light or systemd".to_owned()),
    }
}

pub fn run(command: ImageCommand) -> Result<ExitCode> {
    match command {
        ImageCommand::Build(arguments) => build(arguments),
        ImageCommand::Pull(arguments) => pull::run(arguments),
        ImageCommand::List(arguments) => list(&arguments),
        ImageCommand::Show(arguments) => show(&arguments),
        ImageCommand::Rm(arguments) => remove(&arguments),
        ImageCommand::Prune(arguments) => prune(&arguments),
    }
}

fn build(arguments: BuildArguments) -> Result<ExitCode> {
    let defaults = ImageSpec::new(arguments.name);
    let spec = ImageSpec {
        suite: arguments.suite,
        packages: arguments.packages,
        recommends: !arguments.no_recommends,
        kernel: arguments.kernel,
        root_disk_bytes: match arguments.disk_size {
            _ if arguments.no_disk => None,
            Some(size) => Some(size.bytes()),
            None => defaults.root_disk_bytes,
        },
        init: arguments.init,
        redis_append_only: arguments.redis_append_only,
        ..defaults
    };
    let options = BuildOptions { refresh: arguments.refresh, force: arguments.force };
    interrupt::catch(|| {})?;
    let mut bar = Bar::default();
    let built = arguments.format.store()?.build(&spec, options, &mut bar);
    bar.clear();
    let built = built.with_context(|| format!("cannot build image {}", spec.name))?;
    if arguments.format.json {
        print_json(&describe(&built.image, built.cached))?;
    } else {
        let what = if built.cached { "is up to date" } else { "built" };
        print_line(&format!("image {} {what}: {}", spec.name, built.image.dir().display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(arguments: &FormatArguments) -> Result<ExitCode> {
    let images = arguments.store()?.list()?;
    if arguments.json {
        print_json(&images.iter().map(|image| describe(image, true)).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["NAME", "KERNEL", "INIT", "DISK", "PACKAGES"]);
    for image in &images {
        let spec = &image.manifest().spec;
        let (init, packages) = match &image.manifest().pulled {
            Some(pulled) => ("its own".to_owned(), format!("(pulled from {})", pulled.from)),
            None => (format!("{:?}", spec.init).to_lowercase(), spec.packages.join(" ")),
        };
        rows.add_row([
            spec.name.clone(),
            image.manifest().kernel.release.clone(),
            init,
            spec.root_disk_bytes.map_or_else(|| "-".to_owned(), human_bytes),
            packages,
        ]);
    }
    if images.is_empty() {
        say("no images; build one with: twinvm image build redis --package redis-server");
    } else {
        print_table(&rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(arguments: &ShowArguments) -> Result<ExitCode> {
    let image = arguments.format.store()?.get(&arguments.name)?;
    if arguments.format.json {
        print_json(&describe(&image, true))?;
        return Ok(ExitCode::SUCCESS);
    }
    let manifest = image.manifest();
    print_line(&format!("name:     {}", manifest.spec.name))?;
    print_line(&format!("folder:   {}", image.dir().display()))?;
    let kernel = &manifest.kernel;
    match &manifest.pulled {
        Some(pulled) => {
            print_line(&format!("pulled:   {} (sha256 {})", pulled.from, pulled.sha256))?;
            print_line(&format!("kernel:   {}", kernel.release))?;
        }
        None => print_line(&format!("kernel:   {} ({} {})", kernel.release, kernel.package, kernel.version))?,
    }
    print_line(&format!("cmdline:  {}", manifest.cmdline))?;
    for file in &manifest.files {
        print_line(&format!("file:     {} ({})", file.name, human_bytes(file.size_bytes)))?;
    }
    for package in &manifest.packages {
        print_line(&format!("package:  {} {}", package.name, package.version))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(arguments: &RemoveArguments) -> Result<ExitCode> {
    let store = arguments.format.store()?;
    let mut failed = false;
    for name in &arguments.names {
        match store.remove(name) {
            Ok(removal) if arguments.format.json => {
                print_json(&json!({ "removed": name, "files": describe_removal(&removal) }))?;
            }
            Ok(Removal::Removed { .. }) => print_line(&format!("image {name} removed"))?,
            Ok(Removal::Kept { dir, why }) => {
                print_line(&format!("image {name} removed; its files stay in {}: {why}", dir.display()))?;
            }
            Err(error) => {
                say(format_args!("twinvm: {error}"));
                failed = true;
            }
        }
    }
    if failed {
        bail!("not all images were removed");
    }
    Ok(ExitCode::SUCCESS)
}

fn prune(arguments: &PruneArguments) -> Result<ExitCode> {
    let removals = arguments.format.store()?.prune(arguments.all)?;
    if arguments.format.json {
        print_json(&removals.iter().map(describe_removal).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    for removal in &removals {
        match removal {
            Removal::Removed { dir } => print_line(&format!("removed {}", dir.display()))?,
            Removal::Kept { dir, why } => print_line(&format!("kept {}: {why}", dir.display()))?,
        }
    }
    if removals.is_empty() {
        print_line("there is nothing to remove")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe_removal(removal: &Removal) -> serde_json::Value {
    match removal {
        Removal::Removed { dir } => json!({ "dir": dir, "removed": true }),
        Removal::Kept { dir, why } => json!({ "dir": dir, "removed": false, "why": why }),
    }
}

fn describe(image: &Image, cached: bool) -> serde_json::Value {
    json!({
        "name": image.manifest().spec.name,
        "dir": image.dir(),
        "kernel": image.kernel(),
        "initrd": image.initrd(),
        "root_disk": image.root_disk(),
        "cached": cached,
        "manifest": image.manifest(),
    })
}
