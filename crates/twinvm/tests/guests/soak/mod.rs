//! Determinism under real load, for as long as one likes: a guest that serves Redis and PostgreSQL, compiles C programs and idles, beside
//! a second VM that executes the same instructions from the log of the first one's inputs, both digested every 10 million instructions.
//!
//! | module | holds |
//! | --- | --- |
//! | `service` | the guest: its image, its services, its first start |
//! | `load` | what its clients do, and when |
//! | `pair` | the recording VM and the replaying one |
//! | `tap` | the card's way out, which tells the recorder of output |
//! | `replayer` | the second VM |
//! | `divergence` | what is said and kept of two states that differ |
//! | `table` | figures |

mod divergence;
mod load;
mod pair;
mod replayer;
mod service;
mod table;
mod tap;

use std::time::Duration;

use self::load::Schedule;
use self::pair::Pair;
use self::service::Service;
use self::table::Table;

/// Guest time in all if `TWINVM_SOAK_GUEST_S` does not say otherwise.
const GUEST_S: u64 = 8;
/// Numbers of vCPUs if `TWINVM_SOAK_VCPUS` does not say otherwise; they share the time.
const VCPUS: [u32; 1] = [2];

fn guest_s() -> u64 {
    std::env::var("TWINVM_SOAK_GUEST_S").map_or(GUEST_S, |seconds| seconds.parse().expect("a number of seconds"))
}

fn vcpus() -> Vec<u32> {
    std::env::var("TWINVM_SOAK_VCPUS").map_or_else(
        |_| VCPUS.to_vec(),
        |list| list.split(',').map(|number| number.parse().expect("numbers of vCPUs")).collect(),
    )
}

#[test]
fn two_vms_with_the_same_inputs_never_diverge() {
    let vcpus = vcpus();
    let each = Duration::from_secs(guest_s()) / u32::try_from(vcpus.len()).unwrap();
    let service = Service::prepare();
    let mut table = Table::default();
    for cpus in vcpus {
        let pair = Pair::start(&service, cpus);
        let figures = pair.run(&Schedule::new(each));
        table.add(figures);
        eprintln!("{table}");
    }
    assert_eq!(table.divergences(), 0, "the replicas have diverged");
}
