# Answers a line with a greeting.
use strict;
use warnings;
use IO::Socket::INET;

$SIG{PIPE} = "IGNORE";    # the health check hangs up at once
my $listening = IO::Socket::INET->new(LocalPort => 8000, Listen => 5, ReuseAddr => 1) or die "port 8000: $@";
while (my $connection = $listening->accept) {
    my $line = <$connection> // "";
    print $connection "hello, $line";
    close $connection;
}
