"""Says hello from the guest, and which Python and kernel it runs on."""

import platform

print(f"hello from Python {platform.python_version()} on {platform.system()} {platform.release()}")
