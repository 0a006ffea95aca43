//! `twinvm run`: a VM in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use host::foreground::{self, Options, Start};
use machine::probe::choose;
use spec::VmSpec;
use spec::{EngineChoice, EngineKind};
use terminal::choices::EngineName;

#[derive(Args)]
#[command(after_help = "\
The spec is a TOML file:
  name = \"redis\"
  memory = \"512M\"
  image = \"redis\"                  # or: kernel = \"...\", initrd = \"...\", cmdline = \"...\"
  cpus = 1
  cpu = \"portable\"                # or x86-64-v3, host: more of a processor, on fewer hosts (kvm only)
  record = \"records\"              # keep in this folder what `twinvm replay` repeats the VM's life from
  [[disk]]
  path = \"redis.qcow2\"
  format = \"qcow2\"                 # or raw
  base_image = \"redis\"             # created from this image's root disk if it does not exist
  [[network]]
  mode = \"user\"                    # or bridge, with: bridge = \"br0\"
  forward = [\"tcp:127.0.0.1:6379-:6379\"]
Ctrl-] presses the guest's power button, a second Ctrl-] pulls the plug.")]
pub struct RunArguments {
    /// The VM spec
    spec: PathBuf,
    #[command(flatten)]
    how: HowArguments,
}

/// How a VM is run in the foreground.
#[derive(Args)]
pub struct HowArguments {
    /// What executes the vCPUs [default: as the spec says, else auto]
    #[arg(long, value_enum)]
    engine: Option<EngineName>,
    /// Print events as JSON lines, console output included, instead of connecting the terminal
    #[arg(long)]
    json: bool,
}

impl HowArguments {
    /// The options, where a spec says `choice`, and whether the VM is to be recorded.
    pub fn options(&self, choice: EngineChoice, is_recorded: bool) -> Options {
        let engine = match self.engine.map_or(choice, Into::into) {
            EngineChoice::Auto if is_recorded => (EngineKind::Soft, "the one that can record".to_owned()),
            choice => choose(choice),
        };
        Options { engine, json: self.json }
    }
}

pub fn run(arguments: &RunArguments) -> Result<ExitCode> {
    let spec = VmSpec::load(&arguments.spec)?;
    let options = arguments.how.options(spec.engine_choice(), spec.record.is_some());
    foreground::run(Start::Spec(Box::new(spec)), &options)?;
    Ok(ExitCode::SUCCESS)
}
