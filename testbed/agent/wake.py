"""Send a carried kernel SIGIO every so often: a program of its own, so that nothing the agent does makes it late.

    python wake.py PID EVERY_S

UML (6.12) is told of a packet by SIGIO, and then asks epoll, at the edge, what came. The tap signals before it tells
epoll (drivers/net/tun.c, tun_net_xmit): a kernel that is quick finds nothing, and the packet lies in its tap until the
next signal, for seconds where nothing else is sent. So does one whose signal comes while UML goes to sleep
(os_idle_sleep). This ends when the kernel has.
"""

import os
import signal
import sys
import time

if __name__ == "__main__":
    pid, every_s = int(sys.argv[1]), float(sys.argv[2])
    try:
        while True:
            os.kill(pid, signal.SIGIO)
            time.sleep(every_s)
    except ProcessLookupError:
        pass  # the kernel has ended
