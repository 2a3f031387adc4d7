"""The demo on the built-in videos: teachers, students, and probes of what they learned."""

from tubelet.demo.stages import Demo, DemoConfig, demo

__all__ = ["Demo", "DemoConfig", "demo"]
