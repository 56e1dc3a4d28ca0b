"""Send a carried kernel SIGIO every EVERY_S seconds; a separate program, so that the agent's work does not delay it.

    python wake.py PID EVERY_S

It writes a byte once it has started, and begins when its stdin is closed.

UML (6.12) gets SIGIO for a packet, and then asks edge-triggered epoll what arrived. The tap signals before it notifies
epoll (drivers/net/tun.c, tun_net_xmit), so a fast kernel finds nothing, and the packet waits in its tap until the next
signal, which may take seconds. The same happens if the signal arrives while UML goes to sleep (os_idle_sleep). The
program ends when the kernel has.
"""

import os
import signal
import sys
import time

if __name__ == "__main__":
    pid, every_s = int(sys.argv[1]), float(sys.argv[2])
    os.write(1, b"1")
    os.read(0, 1)
    try:
        while True:
            os.kill(pid, signal.SIGIO)
            time.sleep(every_s)
    except ProcessLookupError:
        pass  # the kernel has ended
