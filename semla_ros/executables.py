"""What the installed executables start; imports nothing that takes time, so that interrupts are quiet at once."""

from semla_ros.interrupts import end_by_interrupts


def semla() -> int:
    """Run the command `semla`."""
    end_by_interrupts()
    from semla_ros import cli

    return cli.main()


def perception() -> int:
    """Run the node `perception`, which takes signals itself once it is being made."""
    end_by_interrupts()
    from semla_ros import cli

    return cli.perception()


def scene_camera() -> int:
    """Run the node `scene_camera`, likewise."""
    end_by_interrupts()
    from semla_ros import cli

    return cli.scene_camera()
