//! Which engine `auto` takes, from what was measured.
//!
//! With hardware below it, KVM runs a guest's kernel as fast as its programs: at the host's own speed, whatever that is. A KVM without
//! hardware (some clouds and sandboxes offer one) runs programs at the host's speed and emulates each instruction of the kernel, a thousand
//! times slower; one that emulates both is slow in both. So it is the *relation* that tells, and no absolute speed: a machine
//! within an emulator is slow all over, and its KVM is still the better engine of the two.

use spec::EngineKind;

/// Hardware runs both modes alike; noise and the cost of leaving the guest stay far below this factor, emulation far above it.
const SLOWER_SUPERVISOR_MAX: f64 = 8.0;
/// The software engine runs the host's own instructions at best, in a tight loop nearly as fast as hardware. Where it is faster than KVM by
/// more than this factor, KVM does not run on hardware, in neither mode.
const FASTER_SOFT_MAX: f64 = 4.0;

/// Speed of an engine in a tight loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Million instructions per second in supervisor mode, as a guest's kernel runs.
    pub supervisor_mips: f64,
    /// Million instructions per second in user mode, as a guest's programs run.
    pub user_mips: f64,
}

/// What `auto` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The engine.
    pub engine: EngineKind,
    /// Why, with what was measured, for people.
    pub reason: String,
}

/// Chooses by the speed of both engines. `kvm` is why it does not run where it does not; `soft` is `None` where that one does not.
pub fn decide(kvm: Result<Speed, &str>, soft: Option<Speed>) -> Decision {
    let kvm = match kvm {
        Ok(kvm) => kvm,
        Err(why) => return Decision { engine: EngineKind::Soft, reason: format!("KVM does not run here: {why}") },
    };
    let Some(soft) = soft else {
        return Decision { engine: EngineKind::Kvm, reason: "the software engine does not run here".to_owned() };
    };
    let (supervisor, user) = (mips(kvm.supervisor_mips), mips(kvm.user_mips));
    let beside = mips(soft.supervisor_mips);
    if kvm.supervisor_mips * SLOWER_SUPERVISOR_MAX < kvm.user_mips {
        let reason = format!(
            "this host's KVM has no hardware below it for a guest's kernel and emulates it at {supervisor} MIPS (programs run at {user}, on \
             soft both at {beside})"
        );
        return Decision { engine: EngineKind::Soft, reason };
    }
    if kvm.supervisor_mips * FASTER_SOFT_MAX < soft.supervisor_mips {
        let reason = format!(
            "this host's KVM has no hardware below it: {supervisor} MIPS, where soft runs {beside} on the same host"
        );
        return Decision { engine: EngineKind::Soft, reason };
    }
    let reason =
        format!("hardware runs the guest's kernel ({supervisor} MIPS) and programs ({user}); soft runs {beside}");
    Decision { engine: EngineKind::Kvm, reason }
}

fn mips(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(kvm: (f64, f64), soft: (f64, f64)) -> Decision {
        let [kvm, soft] = [kvm, soft].map(|(supervisor_mips, user_mips)| Speed { supervisor_mips, user_mips });
        decide(Ok(kvm), Some(soft))
    }

    /// Measured on hosts with hardware virtualization, and on machines within emulators that have it.
    #[test]
    fn hardware_is_taken_however_slow_the_host() {
        for (host, kvm, soft) in [
            ("server with VT-x", (1613.0, 1613.0), (330.0, 330.0)),
            ("machine in QEMU, which has AMD-V", (1194.0, 1102.0), (34.0, 37.0)),
            ("machine in QEMU, which has AMD-V", (803.0, 926.0), (42.0, 31.0)),
            ("machine in Bochs, which has VT-x", (17.0, 17.0), (4.0, 4.0)),
            ("server with VT-x whose other core disturbs", (700.0, 1600.0), (330.0, 330.0)),
            ("server with VT-x, and soft translates the loop to the host's own", (1600.0, 1600.0), (1700.0, 1700.0)),
        ] {
            let Decision { engine, reason } = taken(kvm, soft);
            assert_eq!(engine, EngineKind::Kvm, "{host}: {reason}");
        }
    }

    /// Measured on virtual machines whose provider's KVM emulates.
    #[test]
    fn emulation_is_refused_and_the_reason_says_so() {
        for (host, kvm, soft, says) in [
            ("no hardware, programs native", (1.1, 1500.0), (330.0, 330.0), "emulates it at 1.1 MIPS"),
            ("no hardware, programs native", (2.9, 2800.0), (240.0, 240.0), "programs run at 2800"),
            ("no hardware, programs native", (2.2, 9035.0), (292.0, 264.0), "programs run at 9035"),
            ("as before, and soft is slow", (3.0, 2800.0), (2.0, 2.0), "emulates it"),
            ("no hardware at all", (1.0, 1.0), (150.0, 150.0), "1.0 MIPS, where soft runs 150"),
        ] {
            let Decision { engine, reason } = taken(kvm, soft);
            assert_eq!(engine, EngineKind::Soft, "{host}: {reason}");
            assert!(reason.contains(says), "{reason}");
        }
    }

    #[test]
    fn an_engine_that_does_not_run_is_not_taken() {
        let speed = Speed { supervisor_mips: 1.0, user_mips: 1.0 };
        let without_kvm = decide(Err("open /dev/kvm: Permission denied"), Some(speed));
        assert_eq!(without_kvm.engine, EngineKind::Soft);
        assert!(without_kvm.reason.ends_with("Permission denied"), "{}", without_kvm.reason);
        assert_eq!(decide(Ok(speed), None).engine, EngineKind::Kvm);
    }
}
